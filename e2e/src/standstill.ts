import type { LocalCluster, ProcessHandle } from "@kvasir/cli";
import { type ChatBody, openStream, workersOf } from "./support.ts";

/** Processes that stand still where they are: what they have in hand waits, however quick the machine is and however late a test acts. */
export class Standstill {
  readonly #pids = new Set<number>();

  hold(pid: number | undefined): void {
    if (pid === undefined) throw new Error("there is no such process");
    process.kill(pid, "SIGSTOP");
    this.#pids.add(pid);
  }

  release(pid: number | undefined): void {
    if (pid === undefined || !this.#pids.delete(pid)) return;
    try {
      process.kill(pid, "SIGCONT");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error; // It was killed.
    }
  }

  /** All go on. */
  end(): void {
    for (const pid of [...this.#pids]) this.release(pid);
  }
}

/** What a worker says of itself on its admin port. */
export async function drainStateOf(worker: ProcessHandle): Promise<{ state: string; running: number }> {
  return (await (await fetch(`http://${worker.adminAddress}/drain`)).json()) as { state: string; running: number };
}

const decodersOf = (cluster: LocalCluster) => workersOf(cluster).filter(({ kind }) => kind !== "prefill");

/** Events of a stream that are read before it is held. */
const FIRST_EVENTS = 5;

export interface HeldStream extends Awaited<ReturnType<typeof openStream>> {
  /** What of it was read already. */
  readonly events: readonly Record<string, unknown>[];
  /** Who generates it. Its sidecar stands still until `standstill` ends, so that no answer ends before. */
  readonly worker: ProcessHandle;
}

/** A stream that has begun and cannot end: the only request of its cluster. One that had ended just before is asked for again. */
export async function streamInTheMiddle(
  cluster: LocalCluster,
  standstill: Standstill,
  body: ChatBody,
): Promise<HeldStream> {
  for (let attempt = 0; attempt < 20; attempt++) {
    const stream = await openStream(cluster, body);
    const events: Record<string, unknown>[] = [];
    for (let count = 0; count < FIRST_EVENTS; count++) {
      const event = await stream.next();
      if (event === undefined || event === "done" || "error" in event) {
        throw new Error(`a stream's event ${count + 1} is ${JSON.stringify(event)}`);
      }
      events.push(event);
    }
    const decoders = decodersOf(cluster);
    for (const { sidecarPid } of decoders) standstill.hold(sidecarPid);
    let held: ProcessHandle | undefined;
    for (const decoder of decoders) {
      if ((await drainStateOf(decoder)).running > 0) held = decoder;
      // The others serve whatever is asked meanwhile.
      else standstill.release(decoder.sidecarPid);
    }
    if (held !== undefined) return { ...stream, events, worker: held };
    for (let event = await stream.next(); event !== "done"; event = await stream.next()) {
      if (event === undefined || "error" in event) throw new Error(`a stream ended by ${JSON.stringify(event)}`);
    }
  }
  throw new Error("every stream was over before it could be held");
}
