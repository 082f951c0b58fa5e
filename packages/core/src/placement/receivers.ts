import type { FetchOptions } from "./fetch-plan.ts";
import { comesSlowly, OTHER_RECEIVERS_MAX } from "./hand-over.ts";
import type { WorkerOutlook } from "./worker-outlook.ts";

/** A decode worker, and the gap between tokens with one more answer there. */
interface Receiver {
  readonly outlook: WorkerOutlook;
  readonly tbtMs: number;
}

/** The decode workers of one layout and number format of KV. */
interface KindOfReceivers {
  best: Receiver;
  readonly all: Receiver[];
  /** Those with the shortest gaps, the best of all first, once somebody asked for them. */
  shortest: readonly WorkerOutlook[] | undefined;
}

/** Where prompts' KV can go: for each layout and number format, the decode workers with the shortest predicted gap between tokens. */
export class Receivers {
  readonly #kinds: KindOfReceivers[] = [];

  constructor(decodes: readonly WorkerOutlook[], contextTokenCount: number) {
    for (const outlook of decodes) {
      const { role, fingerprint, kvDtype } = outlook.worker.facts;
      if (role === "mixed") continue;
      const receiver = { outlook, tbtMs: outlook.tbtMs(contextTokenCount, 0, 0) };
      const known = this.#kinds.find(
        ({
          best: {
            outlook: { worker },
          },
        }) => {
          return worker.facts.fingerprint === fingerprint && worker.facts.kvDtype === kvDtype;
        },
      );
      if (known === undefined) {
        this.#kinds.push({ best: receiver, all: [receiver], shortest: undefined });
        continue;
      }
      known.all.push(receiver);
      if (receiver.tbtMs < known.best.tbtMs) known.best = receiver;
    }
  }

  /** For a prefill worker the one with the shortest gap, and a few more where KV is known to come slowly to that. None: nobody has its layout. */
  for({ worker }: WorkerOutlook, options: FetchOptions): readonly WorkerOutlook[] {
    const kind = this.#kindFor(worker.facts);
    if (kind === undefined) return [];
    const { best, all } = kind;
    if (!comesSlowly(worker, best.outlook.worker, options)) return [best.outlook];
    kind.shortest ??= [best, ...all.filter((receiver) => receiver !== best).sort(byGap)]
      .slice(0, 1 + OTHER_RECEIVERS_MAX)
      .map(({ outlook }) => outlook);
    return kind.shortest;
  }

  /** One that need not convert KV comes before others. */
  #kindFor(facts: WorkerOutlook["worker"]["facts"]): KindOfReceivers | undefined {
    let found: KindOfReceivers | undefined;
    for (const kind of this.#kinds) {
      const { fingerprint, kvDtype } = kind.best.outlook.worker.facts;
      if (fingerprint !== facts.fingerprint) continue;
      if (kvDtype === facts.kvDtype) return kind;
      if (found === undefined || kind.best.tbtMs < found.best.tbtMs) found = kind;
    }
    return found;
  }
}

function byGap(a: Receiver, b: Receiver): number {
  if (a.tbtMs !== b.tbtMs) return a.tbtMs - b.tbtMs;
  return a.outlook.worker.facts.workerId < b.outlook.worker.facts.workerId ? -1 : 1;
}
