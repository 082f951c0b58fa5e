import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fromBinary } from "@bufbuild/protobuf";
import { KvasirError } from "@kvasir/core";
import { KernelService, KvDtype, type Ticket, type TicketClaims, TicketClaimsSchema } from "@kvasir/proto";
import { createServer, type Implementation, messages, type RpcServer } from "@kvasir/rpc";
import { FAKE_VOCAB_SIZE, FakeDevice } from "./fake-device.ts";
import { type Faults, noFaults } from "./faults.ts";

const KV_BYTES_PER_TOKEN = 64;

export interface FakeKernelOptions {
  readonly epoch: bigint;
  readonly ticketKey: Uint8Array;
  readonly blockCount?: number;
  readonly blockSize?: number;
  readonly contextLength?: number;
  readonly modelRevision?: string;
  readonly faults?: Faults;
}

interface Export {
  readonly sequenceId: bigint;
  readonly blockIds: readonly number[];
  readonly tokenCount: number;
  readonly expiresAtUnixMs: number;
  released: boolean;
}

/** Every running fake of this process by its transfer address: the network between sidecars. */
const network = new Map<string, FakeKernel>();
let nextPort = 1;

/**
 * A KernelService over a real Unix socket that behaves as the proto says, with deterministic tokens and no arithmetic. It keeps book
 * of who may touch which block, and notes in `violations` what a careless worker would make it do.
 */
export class FakeKernel {
  readonly options: FakeKernelOptions;
  readonly faults: Faults;
  readonly device: FakeDevice;
  readonly violations: string[] = [];
  /** Trace contexts of the sequences started and the fetches asked for. */
  readonly traceparents: string[] = [];
  readonly transferAddress = `fake:${nextPort++}`;
  readonly socketPath: string;
  readonly #directory: string;
  readonly #server: RpcServer;
  readonly #exports = new Map<string, Export>();
  readonly #fetches = new Map<string, { running: boolean; fenced: boolean; readonly blockIds: readonly number[] }>();
  readonly #computed = new Map<bigint, number>();
  readonly #gone = Promise.withResolvers<string>();
  #executeOpen = false;
  #stepCount = 0n;
  kvBytesReceived = 0n;
  kvBytesSent = 0n;

  constructor(options: FakeKernelOptions) {
    this.options = options;
    this.faults = options.faults ?? noFaults();
    this.device = new FakeDevice(options.blockCount ?? 64, options.blockSize ?? 16);
    this.#directory = mkdtempSync(join(tmpdir(), "fake-kernel-"));
    this.socketPath = join(this.#directory, "kernel.sock");
    this.#server = createServer();
    this.#server.add(KernelService, this.#implementation());
  }

  async start(): Promise<void> {
    await this.#server.listen(`unix:${this.socketPath}`);
    network.set(this.transferAddress, this);
  }

  /** Resolves when the fake is gone. */
  get exited(): Promise<string> {
    return this.#gone.promise;
  }

  /** Goes away as a killed process does: every stream breaks, peers lose it. */
  async kill(line = "ended by SIGKILL"): Promise<void> {
    if (!network.delete(this.transferAddress)) return;
    this.#gone.resolve(line);
    await this.#server.close(0);
    rmSync(this.#directory, { recursive: true, force: true });
  }

  get openExportCount(): number {
    return [...this.#exports.values()].filter((entry) => !entry.released).length;
  }

  get runningFetchCount(): number {
    return [...this.#fetches.values()].filter((fetch) => fetch.running).length;
  }

  #implementation(): Implementation<typeof KernelService> {
    const { faults, device, options } = this;
    return {
      describe: async () => ({
        layout: {
          modelRevision: options.modelRevision ?? "fake",
          dtype: KvDtype.F32,
          blockSize: device.blockSize,
          shardCount: 1,
          layerCount: 1,
          kvHeadCount: 1,
          headSize: 8,
          rope: "none",
          fingerprint: createHmac("sha256", options.modelRevision ?? "fake")
            .digest()
            .subarray(0, 16),
        },
        blockCount: device.blockCount,
        kvBytesPerToken: KV_BYTES_PER_TOKEN,
        contextLength: options.contextLength ?? 512,
        vocabSize: FAKE_VOCAB_SIZE,
        epoch: options.epoch,
        transferAddresses: [this.transferAddress],
        device: "fake",
        stepTokenMax: 2048,
      }),
      prepareConstraint: async () => ({}),
      execute: async (call) => {
        if (this.#executeOpen) throw new KvasirError({ reason: "stale_epoch", message: "an Execute stream is open" });
        this.#executeOpen = true;
        device.sequences.clear();
        try {
          for await (const request of messages(call)) {
            const stepId = Number(request.stepId);
            if (stepId >= faults.failStepId)
              throw new KvasirError({ reason: "internal", message: "the device failed" });
            if (stepId >= faults.hangStepId) await this.#gone.promise;
            await faults.beforeStep?.();
            if (faults.stepDelayMs > 0) await sleep(faults.stepDelayMs);
            for (const start of request.starts) this.traceparents.push(start.traceparent);
            const results = device.step(request, (blockId, sequenceId) => this.#touched(blockId, sequenceId));
            for (const slice of request.slices) {
              this.#computed.set(slice.sequenceId, device.sequences.get(slice.sequenceId)?.position ?? 0);
            }
            this.#stepCount++;
            const deviceNanos = BigInt(Math.round(faults.stepDelayMs * 1e6) + 1_000);
            const answeredId = stepId >= faults.lieStepId ? request.stepId + 5n : request.stepId;
            call.write({ stepId: answeredId, results, deviceNanos, deviceIdleNanos: 0n });
          }
        } finally {
          this.#executeOpen = false;
        }
      },
      publish: async (request) => {
        await faults.beforePublish?.();
        if (faults.publishDelayMs > 0) await sleep(faults.publishDelayMs);
        if (faults.refusePublish) throw new KvasirError({ reason: faults.refusePublish, message: "publish refused" });
        const key = hex(request.leaseId);
        if (this.#exports.has(key)) return {};
        const { sequenceId, blockIds, tokenCount } = request;
        const expiresAtUnixMs = Number(request.expiresAtUnixMs);
        this.#exports.set(key, { sequenceId, blockIds, tokenCount, expiresAtUnixMs, released: false });
        return {};
      },
      release: async (request) => {
        if (faults.fenceDelayMs > 0) await sleep(faults.fenceDelayMs);
        const entry = this.#exports.get(hex(request.leaseId));
        if (entry) entry.released = true;
        return {};
      },
      fetch: async (request, call) => {
        const key = hex(request.leaseId);
        this.traceparents.push(String(call.metadata.get("traceparent")[0]));
        const fetch = { running: true, fenced: false, blockIds: request.blockIds };
        this.#fetches.set(key, fetch);
        try {
          if (faults.refuseFetch) throw new KvasirError({ reason: faults.refuseFetch, message: "fetch refused" });
          const address = request.source?.shardAddresses[0] ?? "";
          const source = network.get(address);
          if (!source) throw new KvasirError({ reason: "unavailable", message: `no peer at ${address}` });
          let end = request.tokenBegin;
          while (end < request.tokenEnd) {
            await faults.beforeFetchedBlock?.();
            if (end >= faults.stallFetchAfter) await Promise.race([this.#gone.promise, cancelled(call)]);
            if (end >= faults.dropFetchAfter) return;
            const next = Math.min(end + device.blockSize, request.tokenEnd);
            await source.#serve(request.ticket, next, () => call.cancelled);
            if (call.cancelled || fetch.fenced) return;
            this.#written(request.blockIds[Math.floor(end / device.blockSize)] ?? -1, key);
            this.kvBytesReceived += BigInt((next - end) * KV_BYTES_PER_TOKEN);
            end = next;
            const dataBytes = BigInt((end - request.tokenBegin) * KV_BYTES_PER_TOKEN);
            const complete = end === request.tokenEnd;
            call.write({ verifiedTokenEnd: end, dataBytes, complete, transferNanos: 1_000n });
          }
        } finally {
          fetch.running = false;
        }
      },
      fence: async (request) => {
        if (faults.fenceDelayMs > 0) await sleep(faults.fenceDelayMs);
        const fetch = this.#fetches.get(hex(request.leaseId));
        if (fetch) fetch.fenced = true;
        while (fetch?.running) await sleep(1);
        this.#fetches.delete(hex(request.leaseId));
        return {};
      },
      // As a sidecar without swap space: no slot is ever free.
      swap: async () => {
        throw new KvasirError({ reason: "overloaded", message: "there are no host slots" });
      },
      stats: async () => ({
        promptTokensComputed: device.promptTokensComputed,
        decodeTokensComputed: device.decodeTokensComputed,
        kvBytesReceived: this.kvBytesReceived,
        kvBytesSent: this.kvBytesSent,
        steps: this.#stepCount,
        exportsOpen: this.openExportCount,
        fetchesRunning: this.runningFetchCount,
        sequences: device.sequences.size,
      }),
      health: async () => ({ stepsDone: this.#stepCount }),
      listSpans: async () => ({ spans: [] }),
    };
  }

  /** As the source of a pull: waits until the tokens are computed, checking ticket and lease before and after. */
  async #serve(ticket: Ticket | undefined, tokenEnd: number, isCancelled: () => boolean): Promise<void> {
    for (;;) {
      const claims = this.#checkTicket(ticket);
      const entry = this.#exports.get(hex(claims.leaseId));
      const over = Number(claims.expiresAtUnixMs) <= Date.now() || (entry?.expiresAtUnixMs ?? 0) <= Date.now();
      if (!entry || entry.released || over || !network.has(this.transferAddress)) {
        throw new KvasirError({ reason: "lease_expired", message: "the lease is over" });
      }
      if ((this.#computed.get(entry.sequenceId) ?? 0) >= tokenEnd) break;
      if (isCancelled()) return;
      await sleep(1);
    }
    this.kvBytesSent += BigInt(KV_BYTES_PER_TOKEN);
  }

  #checkTicket(ticket: Ticket | undefined): TicketClaims {
    const claims = ticket?.claims ?? new Uint8Array();
    const mac = createHmac("sha256", this.options.ticketKey).update(claims).digest();
    if (Buffer.compare(mac, ticket?.mac ?? new Uint8Array()) !== 0) {
      throw new KvasirError({ reason: "lease_expired", message: "the ticket's signature is wrong" });
    }
    const decoded = fromBinary(TicketClaimsSchema, claims);
    if (decoded.sourceEpoch !== this.options.epoch) {
      throw new KvasirError({ reason: "stale_epoch", message: `the ticket is of epoch ${decoded.sourceEpoch}` });
    }
    return decoded;
  }

  /** A step wrote a block: nobody may be reading it under another sequence's export, nor writing it by a fetch. */
  #touched(blockId: number, sequenceId: bigint): void {
    for (const entry of this.#exports.values()) {
      if (!entry.released && entry.sequenceId !== sequenceId && entry.blockIds.includes(blockId)) {
        this.violations.push(`step of ${sequenceId} writes block ${blockId}, exported by ${entry.sequenceId}`);
      }
    }
    for (const [lease, fetch] of this.#fetches) {
      if (fetch.running && fetch.blockIds.includes(blockId) && !this.#belongs(blockId, sequenceId)) {
        this.violations.push(`step of ${sequenceId} writes block ${blockId} while fetch ${lease} may write it`);
      }
    }
  }

  #belongs(blockId: number, sequenceId: bigint): boolean {
    const last = this.device.sequences.get(sequenceId);
    return last?.blockIds.includes(blockId) === true && last.position >= last.promptTokenCount;
  }

  /** A fetch wrote a block: no known sequence may have it in its table yet. */
  #written(blockId: number, lease: string): void {
    for (const [sequenceId, sequence] of this.device.sequences) {
      if (sequence.blockIds.includes(blockId) && !sequence.stopped) {
        this.violations.push(`fetch ${lease} writes block ${blockId} of running sequence ${sequenceId}`);
      }
    }
  }
}

function cancelled(call: {
  cancelled: boolean;
  once(event: "cancelled", listener: () => void): unknown;
}): Promise<void> {
  return new Promise((resolve) => {
    if (call.cancelled) resolve();
    call.once("cancelled", resolve);
  });
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}
