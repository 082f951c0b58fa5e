import { connectState, type State } from "@kvasir/state";
import { membersOf, type RunningCluster, runningCluster } from "../running-cluster.ts";
import type { Prometheus } from "./prometheus-process.ts";

const CONNECT_MAX_MS = 3_000;

/** Keeps the targets those of the cluster that `npm run up` runs at the moment, whatever is started, lost or started again. */
export class ClusterFollower {
  readonly #prometheus: Pick<Prometheus, "setTargets">;
  readonly #cache: string;
  readonly #print: (line: string) => void;
  #followed: RunningCluster | undefined;
  #state: State | undefined;
  #said: string | undefined;
  #isLooking = false;

  constructor(prometheus: Pick<Prometheus, "setTargets">, cache: string, say: (line: string) => void) {
    this.#prometheus = prometheus;
    this.#cache = cache;
    this.#print = say;
  }

  async look(): Promise<void> {
    if (this.#isLooking) return;
    this.#isLooking = true;
    try {
      await this.#connect(await runningCluster(this.#cache));
      const members = this.#state === undefined ? [] : await membersOf(this.#state);
      this.#prometheus.setTargets(members);
      const names = members.map(({ name }) => name).sort();
      this.#say(
        names.length === 0 ? "no cluster to scrape; start one with npm run up" : `scraping ${names.join(", ")}`,
      );
    } catch (error) {
      this.#say(`the cluster's Redis does not answer: ${error instanceof Error ? error.message : String(error)}`);
      await this.#connect(undefined);
      this.#prometheus.setTargets([]);
    } finally {
      this.#isLooking = false;
    }
  }

  async #connect(running: RunningCluster | undefined): Promise<void> {
    if (running?.redisUrl === this.#followed?.redisUrl && running?.cluster === this.#followed?.cluster) return;
    const old = this.#state;
    this.#followed = undefined;
    this.#state = undefined;
    await old?.close();
    if (running?.redisUrl === undefined || running.cluster === undefined) return;
    const { redisUrl, cluster, tls } = running;
    this.#state = await connectState(redisUrl, cluster, { connectMaxMs: CONNECT_MAX_MS, ...(tls ? { tls } : {}) });
    this.#followed = running;
  }

  #say(line: string): void {
    if (line !== this.#said) this.#print(line);
    this.#said = line;
  }
}
