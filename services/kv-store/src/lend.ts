import { randomBytes } from "node:crypto";
import type { Metadata } from "@grpc/grpc-js";
import { BLOCK_HASH_BYTES, KvasirError } from "@kvasir/core";
import type { LendStart } from "@kvasir/proto";
import { contextFromMetadata, metadataFromContext } from "@kvasir/rpc";
import { endSpan, type LentBlocks, now, signTicket, startSpan } from "@kvasir/worker";
import type { BlockStore } from "./block-store.ts";

/** Lends what a store holds of the blocks: as many from the first on as are there. They are pinned until the loan ends. */
export async function lendFromStore(store: BlockStore, request: LendStart, metadata: Metadata): Promise<LentBlocks> {
  const { tracer, settings } = store.facts;
  const { expectedEpoch, tenantScope, hashes } = request;
  if (expectedEpoch !== store.epoch) {
    const message = `the plan names epoch ${expectedEpoch}, this is epoch ${store.epoch}; compute the blocks`;
    throw new KvasirError({ reason: "stale_epoch", message });
  }
  const askedCount = hashes.length / BLOCK_HASH_BYTES;
  const traced = startSpan(tracer, "store.lend", contextFromMetadata(metadata), {
    "kvasir.store_id": settings.storeId,
    "kvasir.blocks": askedCount,
  });
  try {
    const tenant = Buffer.from(tenantScope).toString("hex");
    const count = store.directory.lookUp(hashes, tenant, now());
    const keys = Array.from({ length: count }, (_, index) =>
      hashes.slice(index * BLOCK_HASH_BYTES, (index + 1) * BLOCK_HASH_BYTES),
    );
    const lent = await expose(store, request, keys, metadataFromContext(traced.context));
    const { blockCount = 0, fromDisk = [] } = lent.loan;
    const diskCount = fromDisk.filter(Boolean).length;
    store.facts.meter.lent({ askedCount, memoryCount: blockCount - diskCount, diskCount });
    traced.span.setAttributes({ "kvasir.lent_blocks": blockCount, "kvasir.lent_blocks_from_disk": diskCount });
    endSpan(traced.span);
    return lent;
  } catch (error) {
    endSpan(traced.span, error instanceof Error ? error : undefined);
    throw error;
  }
}

async function expose(
  store: BlockStore,
  { tenantScope, firstBlock }: LendStart,
  keys: readonly Uint8Array[],
  metadata: Metadata,
): Promise<LentBlocks> {
  const { directory, facts } = store;
  const { kernel, settings, layout, description } = facts;
  if (keys.length === 0) return { loan: { blockCount: 0 }, giveBack: async () => undefined };
  const leaseId = randomBytes(16);
  const expiresAtUnixMs = BigInt(Date.now() + settings.leaseMs);
  const pinned = keys.filter((key) => directory.pin(key));
  const unpin = (from: number) => {
    for (const key of pinned.splice(from)) directory.unpin(key, now());
  };
  store.loanCount++;
  const giveBack = async () => {
    await kernel.withdraw(leaseId);
    unpin(0);
    store.loanCount--;
  };
  try {
    const exposed = await kernel.expose(
      { leaseId, firstBlock, keys: Buffer.concat(keys), tenantScope, expiresAtUnixMs },
      metadata,
    );
    const { exposedCount, fromDisk } = exposed;
    unpin(exposedCount);
    const missing = exposed.nextIsMissing ? keys[exposedCount] : undefined;
    if (missing !== undefined) {
      facts.meter.missing();
      store.apply({ kind: "BlockMissing", key: missing });
    }
    for (const [index, key] of keys.slice(0, exposedCount).entries()) {
      if (fromDisk[index]) store.apply({ kind: "BlockLoaded", key });
    }
    const tokenBegin = firstBlock * layout.blockSize;
    const tokenEnd = tokenBegin + exposedCount * layout.blockSize;
    const claims = {
      ...{ leaseId, tokenBegin, tokenEnd, tenantScope, expiresAtUnixMs },
      ...{ sourceWorkerId: settings.storeId, sourceEpoch: store.epoch, layoutFingerprint: layout.fingerprint },
    };
    const ticket = signTicket(claims, facts.ticketKey);
    const { transferAddress, codecProfileIds } = description;
    const source = { layout, shardAddresses: [transferAddress], codecProfileIds };
    return {
      loan: { blockCount: exposedCount, fromDisk, ...(exposedCount > 0 ? { ticket, source } : {}) },
      lost: store.ended,
      giveBack,
    };
  } catch (error) {
    await giveBack();
    throw error;
  }
}
