import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Metadata } from "@grpc/grpc-js";
import { BLOCK_HASH_BYTES } from "@kvasir/core";
import type { LendingService, LendStart, LoanSchema } from "@kvasir/proto";
import { type Implementation, messages } from "@kvasir/rpc";
import { invalid } from "../invalid.ts";

const TENANT_SCOPE_BYTES = 16;

/** Blocks that stay in place until they are given back. */
export interface LentBlocks {
  readonly loan: MessageInitShape<typeof LoanSchema>;
  /** Resolves, or rejects, when they cannot be read any more in any case; absent: not before they are given back. */
  readonly lost?: Promise<unknown>;
  /** Nobody wants them any more. Resolves when nothing reads them. */
  giveBack(): Promise<void>;
}

/** `LendingService`: each stream keeps what `lend` gave for as long as it lives, and `leaseMs` at most. */
export function lendingService(
  lend: (request: LendStart, metadata: Metadata) => Promise<LentBlocks>,
  leaseMs: number,
): Implementation<typeof LendingService> {
  return {
    async lend(call) {
      const requests = messages(call);
      const first = await requests.next();
      if (first.done || first.value.kind.case !== "start") throw invalid("start", "the first message must be `start`");
      const start = first.value.kind.value;
      check(start);
      const lent = await lend(start, call.metadata);
      const lapsed = Promise.withResolvers<void>();
      const timer = setTimeout(lapsed.resolve, leaseMs);
      try {
        if (call.cancelled) return;
        call.write({ kind: { case: "loan", value: { ...lent.loan, leaseMs } } });
        if ((lent.loan.blockCount ?? 0) > 0)
          await Promise.race([callerEnds(requests), lapsed.promise, lent.lost ?? lapsed.promise]);
      } finally {
        clearTimeout(timer);
        await lent.giveBack();
      }
    },
  };
}

/** The caller's side ends, well or by being cut: the same. */
async function callerEnds(requests: AsyncIterable<unknown>): Promise<void> {
  try {
    for await (const _ of requests);
  } catch {
    // Cut.
  }
}

function check({ tenantScope, hashes }: LendStart): void {
  if (tenantScope.length !== TENANT_SCOPE_BYTES) {
    throw invalid("tenant_scope", `tenant_scope has ${tenantScope.length} bytes, must have ${TENANT_SCOPE_BYTES}`);
  }
  if (hashes.length === 0 || hashes.length % BLOCK_HASH_BYTES !== 0) {
    throw invalid(
      "hashes",
      `hashes has ${hashes.length} bytes; give ${BLOCK_HASH_BYTES} for each of at least one block`,
    );
  }
}
