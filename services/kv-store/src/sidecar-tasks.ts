import type { StoreKernel } from "./store-kernel.ts";

/** Blocks of one call. */
const BLOCKS_PER_CALL = 256;

export interface TaskListener {
  /** A block is durable, or could not be written. */
  persisted(key: Uint8Array, isDurable: boolean): void;
}

/** What the sidecar is to do with blocks that it has, gathered into calls: those of one turn of the event loop go together. */
export class SidecarTasks {
  readonly #kernel: StoreKernel;
  readonly #listener: TaskListener;
  #toPersist: Uint8Array[] = [];
  #toRemove: Uint8Array[] = [];
  #toDrop: Uint8Array[] = [];
  #isQueued = false;
  #removed: Promise<unknown> = Promise.resolve();

  constructor(kernel: StoreKernel, listener: TaskListener) {
    this.#kernel = kernel;
    this.#listener = listener;
  }

  /** Resolves when every removal asked for so far is done. */
  get removed(): Promise<void> {
    this.#send();
    return this.#removed.then(() => undefined);
  }

  persist(key: Uint8Array): void {
    this.#toPersist.push(key.slice());
    this.#queue();
  }

  remove(key: Uint8Array, memoryOnly: boolean): void {
    (memoryOnly ? this.#toDrop : this.#toRemove).push(key.slice());
    this.#queue();
  }

  #queue(): void {
    if (this.#isQueued) return;
    this.#isQueued = true;
    setImmediate(() => this.#send());
  }

  #send(): void {
    this.#isQueued = false;
    for (const keys of parts(this.#toRemove)) this.#remove(keys, false);
    for (const keys of parts(this.#toDrop)) this.#remove(keys, true);
    for (const keys of parts(this.#toPersist)) void this.#persist(keys);
    this.#toRemove = [];
    this.#toDrop = [];
    this.#toPersist = [];
  }

  #remove(keys: readonly Uint8Array[], memoryOnly: boolean): void {
    // A sidecar that does not answer is given up elsewhere; what it keeps too much is found by no look-up.
    const done = this.#kernel.remove(Buffer.concat(keys), memoryOnly).catch(() => undefined);
    this.#removed = Promise.all([this.#removed, done]);
  }

  async #persist(keys: readonly Uint8Array[]): Promise<void> {
    const durable = await this.#kernel.persist(Buffer.concat(keys)).catch((): readonly boolean[] => []);
    for (const [index, key] of keys.entries()) this.#listener.persisted(key, durable[index] ?? false);
  }
}

function parts(keys: readonly Uint8Array[]): readonly (readonly Uint8Array[])[] {
  const count = Math.ceil(keys.length / BLOCKS_PER_CALL);
  return Array.from({ length: count }, (_, part) => keys.slice(part * BLOCKS_PER_CALL, (part + 1) * BLOCKS_PER_CALL));
}
