import { setTimeout as sleep } from "node:timers/promises";
import type { LocalCluster, ProcessHandle } from "@kvasir/cli";
import { afterAll, beforeAll, expect, test } from "vitest";
import { blocks, chatBody, expectNothingLeft, metric, openStream, post, processOf, startTiny } from "./support.ts";

let cluster: LocalCluster;
beforeAll(async () => {
  // Small steps, so that a prompt takes many and a pull has a middle.
  cluster = await startTiny({ restart: true, stepTokens: 64 });
}, 60_000);
afterAll(() => cluster?.stop());

const PROMPT = `${"The old mill stood beside the river, and nobody had opened its door for years. ".repeat(60)}Who came?`;
const KINDS_OF_SAMPLING = {
  greedy: { max_tokens: 150, ignore_eos: true },
  seeded: {
    ...{ max_tokens: 150, ignore_eos: true, temperature: 1.1, seed: 42, top_p: 0.95 },
    ...{ repetition_penalty: 1.2, presence_penalty: 0.4, logprobs: true, min_tokens: 20 },
  },
};
type Sampling = keyof typeof KINDS_OF_SAMPLING;
const SAMPLINGS = Object.keys(KINDS_OF_SAMPLING) as Sampling[];

interface Told {
  readonly choices: readonly { delta: { content?: string }; logprobs?: unknown; finish_reason?: string | null }[];
  readonly usage?: { readonly completion_tokens: number; readonly prompt_tokens: number };
  readonly kvasir?: { readonly resumes: number; readonly local_prefill: boolean };
  readonly error?: unknown;
}

/** A stream that is read to its end: what the client has in the end, and when it has so many events. */
class Reader {
  readonly events: Told[] = [];
  readonly #waiting: { readonly count: number; readonly resolve: () => void }[] = [];
  readonly ended: Promise<string>;

  constructor(sampling: Sampling) {
    this.ended = this.#read(sampling);
  }

  /** Resolves when so many events have come. */
  has(count: number): Promise<void> {
    if (this.events.length >= count) return Promise.resolve();
    return new Promise((resolve) => this.#waiting.push({ count, resolve }));
  }

  get answer() {
    const deltas = this.events.flatMap(({ choices }) => choices);
    const last = this.events.at(-1);
    return {
      text: deltas.map(({ delta }) => delta.content ?? "").join(""),
      logprobs: deltas.flatMap(({ logprobs }) => (logprobs as { content?: unknown[] } | null)?.content ?? []),
      finish: deltas.find(({ finish_reason }) => finish_reason)?.finish_reason,
      usage: last?.usage,
    };
  }

  async #read(sampling: Sampling): Promise<string> {
    const fields = { ...KINDS_OF_SAMPLING[sampling], stream_options: { include_usage: true } };
    const stream = await openStream(cluster, chatBody(PROMPT, fields));
    for (let event = await stream.next(); ; event = await stream.next()) {
      if (event === undefined) return "cut";
      if (event === "done") return "done";
      this.events.push(event as unknown as Told);
      if ("error" in event) return JSON.stringify(event.error);
      for (const { count, resolve } of this.#waiting) if (this.events.length >= count) resolve();
    }
  }
}

let undisturbed: Promise<ReadonlyMap<Sampling, Reader["answer"]>> | undefined;

/** What each sampling gives when nothing is lost; asked once. */
function expected(): Promise<ReadonlyMap<Sampling, Reader["answer"]>> {
  undisturbed ??= (async () => {
    const answers = new Map<Sampling, Reader["answer"]>();
    for (const sampling of SAMPLINGS) {
      const reader = new Reader(sampling);
      expect(await reader.ended).toBe("done");
      expect(reader.answer.usage?.completion_tokens).toBe(150);
      answers.set(sampling, reader.answer);
    }
    return answers;
  })();
  return undisturbed;
}

function signal(pid: number | undefined, name: NodeJS.Signals): void {
  if (pid === undefined) throw new Error("there is no such process");
  try {
    process.kill(pid, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error; // It was the one that was killed.
  }
}

interface Scene {
  readonly prefill: ProcessHandle;
  readonly decode: ProcessHandle;
  readonly sidecars: { readonly prefill: number | undefined; readonly decode: number | undefined };
  readonly start: () => readonly Reader[];
  /** Stands still until the victim is dead. */
  readonly hold: (pid: number | undefined) => void;
}

/** Each leads to its point and holds the requests there. */
const POINTS: Readonly<Record<string, (scene: Scene) => Promise<void>>> = {
  /** The prefill worker has been asked and says nothing. */
  async "before the ticket"({ prefill, decode, start, hold }) {
    hold(prefill.pid);
    start();
    await expect.poll(() => blocks(decode, "reserved"), { interval: 10, timeout: 10_000 }).toBeGreaterThan(0);
  },
  /** Decode has taken its blocks, and no KV has come. */
  async "after the ticket"({ decode, sidecars, start, hold }) {
    hold(sidecars.decode);
    start();
    await expect.poll(() => blocks(decode, "used"), { interval: 10, timeout: 10_000 }).toBeGreaterThan(0);
  },
  /** Some of the KV is there, and more is to be computed. */
  async "in the middle of the pull"({ decode, sidecars, start, hold }) {
    const received = () => metric(decode, "kvasir_sidecar_kv_bytes_received_total");
    // A machine that is busy may let it compute for longer than its turn: then once more.
    for (let attempt = 0; attempt < 5; attempt++) {
      const before = await received();
      hold(sidecars.prefill);
      const readers = start();
      // It computes in short turns: the counters are read while it stands still.
      for (let turn = 0; (await received()) === before; turn++) {
        if (turn === 400) throw new Error("no KV came");
        signal(sidecars.prefill, "SIGCONT");
        for (const begun = performance.now(); performance.now() - begun < 1; );
        signal(sidecars.prefill, "SIGSTOP");
        await sleep(110);
      }
      if (readers.every((reader) => reader.events.length === 0)) return;
      signal(sidecars.prefill, "SIGCONT");
      for (const reader of readers) expect(await reader.ended).toBe("done");
    }
    throw new Error("the pull was over each time");
  },
  /** The first token is with the client, and no KV with decode. */
  async "after the first token"({ sidecars, start, hold }) {
    hold(sidecars.decode);
    await Promise.all(start().map((reader) => reader.has(1)));
  },
  async "in the middle of decoding"({ start }) {
    await Promise.all(start().map((reader) => reader.has(20)));
  },
};

const TARGETS: Readonly<Record<string, () => number | undefined>> = {
  "prefill worker": () => processOf(cluster, "prefill").pid,
  "prefill sidecar": () => processOf(cluster, "prefill").sidecarPid,
  "decode worker": () => processOf(cluster, "decode").pid,
  "decode sidecar": () => processOf(cluster, "decode").sidecarPid,
  router: () => processOf(cluster, "router").pid,
};

const TABLE = Object.keys(TARGETS).flatMap((target) => Object.keys(POINTS).map((point) => [target, point] as const));

test.each(TABLE)(
  "kill -9 of the %s %s: the clients get the tokens of an undisturbed run, and nothing is left",
  async (target, point) => {
    const answers = await expected();
    await cluster.ready();
    await expectNothingLeft(cluster);
    const [prefill, decode] = [processOf(cluster, "prefill"), processOf(cluster, "decode")];
    const sidecars = { prefill: prefill.sidecarPid, decode: decode.sidecarPid };
    let readers: readonly Reader[] = [];
    const start = () => {
      readers = SAMPLINGS.map((sampling) => new Reader(sampling));
      return readers;
    };
    const held: (number | undefined)[] = [];
    const hold = (pid: number | undefined) => {
      held.push(pid);
      signal(pid, "SIGSTOP");
    };
    let victim: number | undefined;
    try {
      await POINTS[point]?.({ prefill, decode, sidecars, start, hold });
      victim = TARGETS[target]?.();
      signal(victim, "SIGKILL");
    } finally {
      for (const pid of held) signal(pid, "SIGCONT");
    }
    for (const [index, sampling] of SAMPLINGS.entries()) {
      expect(await readers[index]?.ended, sampling).toBe("done");
      expect(readers[index]?.answer).toEqual(answers.get(sampling));
    }
    await expectNothingLeft(cluster);
    await expect.poll(() => TARGETS[target]?.(), { timeout: 20_000 }).not.toBe(victim);
  },
  60_000,
);

test("while no prefill worker is left, decode computes prompts, says so and counts it", async () => {
  const answers = await expected();
  await cluster.ready();
  const decode = processOf(cluster, "decode");
  const count = () => metric(decode, 'kvasir_local_prefills_total{cause="no_prefill_worker"}');
  const before = await count();
  const prefill = processOf(cluster, "prefill");
  // Stopped, not killed: it would be started again.
  signal(prefill.pid, "SIGSTOP");
  try {
    const reader = new Reader("greedy");
    expect(await reader.ended).toBe("done");
    expect(reader.answer).toEqual(answers.get("greedy"));
    expect(reader.events.at(-1)?.kvasir?.local_prefill).toBe(true);
    expect(await count()).toBeGreaterThan(before);
  } finally {
    signal(prefill.pid, "SIGCONT");
  }
  await expect
    .poll(async () => ((await (await post(cluster, chatBody("Hi", {}))).json()) as Told).kvasir?.local_prefill)
    .toBe(false);
  await expectNothingLeft(cluster);
}, 60_000);
