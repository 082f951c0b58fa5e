import type { Instant } from "@kvasir/core";
import { addNanos, nanosFromMs } from "@kvasir/core";
import { now } from "../clock.ts";
import type { PrefillPeers } from "./peers.ts";

/** Heartbeats in one life of a lease: so many may be lost but one. */
const RENEWALS_PER_LEASE = 6;
const INTERVAL_MIN_MS = 20;

/** A transfer whose lease is to live on. */
export interface RenewedTransfer {
  readonly transferId: Uint8Array;
  renewed(leaseEnd: Instant): void;
  /** The prefill worker knows nothing of it any more. */
  lost(): void;
}

interface Peer {
  readonly transfers: Map<string, RenewedTransfer>;
  readonly timer: NodeJS.Timeout;
}

/** Keeps the leases of live transfers: one message for all that come from one prefill worker, a sixth of a lease apart. */
export class LeaseRenewals {
  readonly #channels: PrefillPeers;
  readonly #peers = new Map<string, Peer>();

  constructor(channels: PrefillPeers) {
    this.#channels = channels;
  }

  /** From now until `remove`. `leaseMs`: as told with the ticket. */
  add(address: string, leaseMs: number, transfer: RenewedTransfer): void {
    let peer = this.#peers.get(address);
    if (peer === undefined) {
      const intervalMs = Math.max(INTERVAL_MIN_MS, leaseMs / RENEWALS_PER_LEASE);
      const timer = setInterval(() => void this.#renew(address, intervalMs), intervalMs);
      peer = { transfers: new Map(), timer };
      this.#peers.set(address, peer);
    }
    peer.transfers.set(keyOf(transfer.transferId), transfer);
  }

  remove(address: string, transferId: Uint8Array): void {
    const peer = this.#peers.get(address);
    if (!peer?.transfers.delete(keyOf(transferId)) || peer.transfers.size > 0) return;
    clearInterval(peer.timer);
    this.#peers.delete(address);
  }

  async #renew(address: string, deadlineMs: number): Promise<void> {
    const asked = [...(this.#peers.get(address)?.transfers ?? [])];
    const transferIds = asked.map(([, { transferId }]) => transferId);
    // A heartbeat that is lost is followed by others; when all are, the lease's end tells.
    const answer = await this.#channels.renew(address, transferIds, deadlineMs).catch(() => undefined);
    if (answer === undefined) return;
    const leaseEnd = addNanos(now(), nanosFromMs(answer.leaseMs));
    const unknown = new Set(answer.unknownTransferIds.map(keyOf));
    for (const [key, transfer] of asked) {
      if (this.#peers.get(address)?.transfers.get(key) !== transfer) continue;
      if (unknown.has(key)) transfer.lost();
      else transfer.renewed(leaseEnd);
    }
  }
}

function keyOf(transferId: Uint8Array): string {
  return Buffer.from(transferId).toString("hex");
}
