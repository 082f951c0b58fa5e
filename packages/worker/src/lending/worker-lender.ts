import { randomBytes } from "node:crypto";
import type { Metadata } from "@grpc/grpc-js";
import { KvasirError, nanosFromMs } from "@kvasir/core";
import type { LendStart } from "@kvasir/proto";
import { contextFromMetadata, metadataFromContext } from "@kvasir/rpc";
import { now } from "../clock.ts";
import type { Incarnation } from "../incarnation.ts";
import { checkEpoch } from "../request-check.ts";
import { signTicket } from "../ticket.ts";
import type { LentBlocks } from "./lending-service.ts";

/** Lends what an incarnation has cached: holds the blocks, and opens them to pulls. */
export async function lendFromPool(
  { expectedEpoch, tenantScope, hashes, firstBlock }: LendStart,
  metadata: Metadata,
  facts: { readonly current: Incarnation | undefined; readonly workerId: string; readonly leaseMs: number },
): Promise<LentBlocks> {
  const incarnation = checkEpoch(facts.current, expectedEpoch);
  const { kernel, loans, layout, engine } = incarnation;
  const leaseId = randomBytes(16);
  const loanId = leaseId.toString("hex");
  const outcome = loans.lend(loanId, hashes, nanosFromMs(facts.leaseMs), now());
  if (outcome.kind === "too_many") {
    const message = "as many blocks as may be are on loan already; ask again later";
    throw new KvasirError({ reason: "overloaded", message, retryAfterMs: 1_000 });
  }
  const { blockIds } = outcome.loan;
  if (blockIds.length === 0) return { loan: { blockCount: 0 }, giveBack: async () => undefined };
  const giveBack = async () => {
    await kernel.release(leaseId);
    loans.giveBack(loanId);
    // Somebody may have waited for these blocks.
    engine.apply({ kind: "TimePassed" });
  };
  const expiresAtUnixMs = BigInt(Date.now() + facts.leaseMs);
  const tokenBegin = firstBlock * layout.blockSize;
  const tokenEnd = tokenBegin + blockIds.length * layout.blockSize;
  try {
    await kernel.publish(
      {
        leaseId,
        tokenCount: tokenEnd,
        // The ticket begins at the first block, so nothing reads those before it.
        blockIds: [...new Array<number>(firstBlock).fill(0), ...blockIds],
        tenantScope,
        expiresAtUnixMs,
        computed: true,
      },
      metadataFromContext(contextFromMetadata(metadata)),
    );
  } catch (error) {
    await giveBack();
    throw error;
  }
  const claims = {
    ...{ leaseId, tokenBegin, tokenEnd, tenantScope, expiresAtUnixMs },
    ...{ sourceWorkerId: facts.workerId, sourceEpoch: incarnation.epoch, layoutFingerprint: layout.fingerprint },
  };
  return {
    loan: {
      blockCount: blockIds.length,
      ticket: signTicket(claims, incarnation.ticketKey),
      source: incarnation.source,
      fromDisk: blockIds.map(() => false),
    },
    lost: incarnation.ended,
    giveBack,
  };
}
