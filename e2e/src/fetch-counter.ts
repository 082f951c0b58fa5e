import type { LocalCluster } from "@kvasir/cli";

/** Fetches of cached KV by their source and outcome, `store complete`. What a process counted between the last look and its death is not seen. */
export class FetchCounter {
  readonly counts = new Map<string, number>();
  readonly #cluster: LocalCluster;
  /** By process and outcome, as last seen. */
  readonly #seen = new Map<string, number>();

  constructor(cluster: LocalCluster) {
    this.#cluster = cluster;
  }

  async count(): Promise<void> {
    await Promise.all(
      this.#cluster.processes.map(async ({ name, kind, pid }) => {
        if (kind === "redis" || kind === "router" || kind === "gateway") return;
        const samples = await this.#cluster.metrics(name).catch(() => new Map<string, number>());
        // It was another process by the time it was asked.
        if (this.#cluster.process(name).pid !== pid) return;
        for (const [sample, count] of samples) {
          const [, source, ended] = /^kvasir_prefix_fetches_total\{source="(\w+)",outcome="(\w+)"\}/.exec(sample) ?? [];
          if (source === undefined || count === 0) continue;
          const outcome = `${source} ${ended}`;
          const key = `${pid} ${outcome}`;
          const grown = count - (this.#seen.get(key) ?? 0);
          this.#seen.set(key, count);
          this.counts.set(outcome, (this.counts.get(outcome) ?? 0) + grown);
        }
      }),
    );
  }
}
