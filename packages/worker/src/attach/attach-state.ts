import { WorkerRole } from "@kvasir/proto";
import type { Incarnation } from "../incarnation.ts";
import type { Role } from "../worker.ts";
import type { AttachState } from "./attach-stream.ts";
import { cacheOfPool } from "./cache-teller.ts";

const WIRE_ROLE: Readonly<Record<Role, WorkerRole>> = {
  prefill: WorkerRole.PREFILL,
  decode: WorkerRole.DECODE,
  mixed: WorkerRole.MIXED,
};

/** What a router is told of one incarnation. */
export function attachState(
  incarnation: Incarnation,
  worker: {
    readonly workerId: string;
    readonly role: Role;
    readonly address: string;
    readonly adminAddress: string;
    readonly model: string;
  },
  isDraining: () => boolean,
): AttachState {
  const { engine, description, layout, epoch } = incarnation;
  return {
    epoch,
    caches: cacheOfPool(engine.scheduler.pool),
    links: incarnation.transfers,
    hello: {
      case: "hello",
      value: {
        workerId: worker.workerId,
        role: WIRE_ROLE[worker.role],
        address: worker.address,
        adminAddress: worker.adminAddress,
        model: worker.model,
        layout,
        blockCount: description.blockCount,
        contextLength: description.contextLength,
        transferAddress: description.transferAddresses[0] ?? "",
      },
    },
    load: (links) => {
      const load = engine.scheduler.load();
      const stepCost = engine.meter.stepCost();
      const value = {
        freeBlocks: load.availableBlockCount,
        running: load.runningCount,
        waiting: load.waitingCount,
        queuedPromptTokens: load.queuedPromptTokenCount,
        contextTokens: BigInt(load.contextTokenCount),
        prefillTokensPerSecond: engine.meter.prefillTokensPerSecond,
        decodeStepMs: engine.meter.decodeStepMs,
        ...(stepCost === undefined ? {} : { stepCost }),
        draining: isDraining(),
        links: [...links],
      };
      return { case: "load", value };
    },
  };
}
