import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { toBinary } from "@bufbuild/protobuf";
import { type KvLayout, KvLayoutSchema } from "@kvasir/proto";
import { flagsFrom, type Log, type Sidecar, socketPath, startSidecar, TICKET_KEY_BYTES } from "@kvasir/worker";
import { BlockStore, type BlockStoreFacts } from "./block-store.ts";
import { StoreKernel } from "./store-kernel.ts";

const RESTART_FIRST_MS = 250;
const RESTART_MAX_MS = 10_000;
/** An incarnation that lived this long was healthy: the next restart is quick again. */
const HEALTHY_MS = 30_000;
const STOP_GRACE_MS = 2_000;
const TICK_MS = 1_000;

export interface StoreSidecarCommand {
  readonly binary: string;
  readonly storeId: string;
  readonly stateDir: string;
  readonly transferListen: string;
  readonly advertiseHost: string | undefined;
  readonly memoryBytes: number;
  readonly directory: string | undefined;
  readonly diskBytes: number;
  readonly segmentBytes: number;
  readonly stagingBlocks: number;
  /** A file, `none` or `auto`. */
  readonly codecProfile: string;
  readonly model: string | undefined;
  readonly tls: { readonly [K in "ca" | "cert" | "key"]: string | undefined } | undefined;
}

export interface StoreSupervisorOptions {
  readonly command: StoreSidecarCommand;
  readonly nextEpoch: () => Promise<number>;
  readonly store: Omit<BlockStoreFacts, "epoch" | "ticketKey" | "layout" | "kernel" | "description">;
  readonly log: Log;
  /** Another incarnation, or none. */
  readonly changed: (current: BlockStore | undefined) => void;
}

/** Keeps a store's sidecar running, once a layout is known. What was on disk is there again under the next epoch. */
export class StoreSupervisor {
  readonly #options: StoreSupervisorOptions;
  readonly #stopping = new AbortController();
  #current: BlockStore | undefined;
  #running: Promise<void> | undefined;
  #restartCount = 0;

  constructor(options: StoreSupervisorOptions) {
    this.#options = options;
  }

  get current(): BlockStore | undefined {
    return this.#current;
  }

  get restartCount(): number {
    return this.#restartCount;
  }

  get isStarted(): boolean {
    return this.#running !== undefined;
  }

  /** Starts the first incarnation for blocks of this layout, and further ones as they are lost. */
  start(layout: KvLayout): void {
    this.#running ??= this.#keepRunning(layout);
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#running;
  }

  async #keepRunning(layout: KvLayout): Promise<void> {
    const { signal } = this.#stopping;
    const { log } = this.#options;
    for (let delayMs = RESTART_FIRST_MS; !signal.aborted; ) {
      const startedAtMs = performance.now();
      try {
        const { sidecar, store } = await this.#launch(layout);
        const ticks = setInterval(() => store.tick(), TICK_MS);
        const how = await Promise.race([sidecar.exited, aborted(signal)]);
        clearInterval(ticks);
        this.#publish(undefined);
        store.end();
        await sidecar.stop(signal.aborted ? STOP_GRACE_MS : 0);
        if (!signal.aborted)
          log.error({ epoch: String(store.epoch) }, `the sidecar is gone (${how}); starting a new one`);
      } catch (error) {
        log.error({ nextTryMs: delayMs }, error instanceof Error ? error.message : String(error));
      }
      if (signal.aborted) return;
      if (performance.now() - startedAtMs > HEALTHY_MS) delayMs = RESTART_FIRST_MS;
      await sleep(delayMs, undefined, { signal }).catch(() => undefined);
      delayMs = Math.min(2 * delayMs, RESTART_MAX_MS);
      this.#restartCount++;
    }
  }

  async #launch(layout: KvLayout): Promise<{ readonly sidecar: Sidecar; readonly store: BlockStore }> {
    const { command, nextEpoch, store: facts, log } = this.#options;
    const epoch = BigInt(await nextEpoch());
    const ticketKey = randomBytes(TICKET_KEY_BYTES);
    const sidecar = await startSidecar(command.binary, flagsOf(command, epoch, layout), ticketKey, log);
    const kernel = new StoreKernel(sidecar.socketPath);
    try {
      const description = await kernel.describe();
      const store = new BlockStore({ ...facts, epoch, ticketKey, layout, kernel, description });
      await store.recover();
      log.info({ epoch: String(epoch), blocks: store.directory.blockCount }, "the store holds blocks");
      this.#publish(store);
      return { sidecar, store };
    } catch (error) {
      kernel.close();
      await sidecar.stop(0);
      throw error;
    }
  }

  #publish(store: BlockStore | undefined): void {
    this.#current = store;
    this.#options.changed(store);
  }
}

function flagsOf(command: StoreSidecarCommand, epoch: bigint, layout: KvLayout): string[] {
  const { tls } = command;
  return [
    "store",
    ...flagsFrom({
      layout: Buffer.from(toBinary(KvLayoutSchema, layout)).toString("hex"),
      socket: socketPath(command.stateDir, command.storeId, epoch),
      listen: command.transferListen,
      advertise: command.advertiseHost,
      "store-id": command.storeId,
      epoch,
      "memory-bytes": command.memoryBytes,
      directory: command.directory,
      "disk-bytes": command.diskBytes,
      "segment-bytes": command.segmentBytes,
      "staging-blocks": command.stagingBlocks,
      "codec-profile": command.codecProfile,
      model: command.model,
      "tls-ca": tls?.ca,
      "tls-cert": tls?.cert,
      "tls-key": tls?.key,
    }),
  ];
}

function aborted(signal: AbortSignal): Promise<string> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve("the store stops");
    signal.addEventListener("abort", () => resolve("the store stops"), { once: true });
  });
}
