import type { LocalCluster } from "@kvasir/cli";
import { freePort } from "@kvasir/cli";
import { type Link, type LinkState, startLink } from "@kvasir/testkit/link";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { answerOf, chatBody, expectNothingLeft, post, startTiny } from "./support.ts";

// Two prefill workers, each behind a link of its own, which only the decode worker uses: calls and KV alike. Everything else stays reachable, so
// that neither router nor gateway sees a worker die.
const HOSTS = { "prefill-0": "127.0.0.7", "prefill-1": "127.0.0.8" };
type Prefill = keyof typeof HOSTS;
const NAMES = Object.keys(HOSTS) as Prefill[];
const LEASE_MS = 4_000;

let cluster: LocalCluster;
const links = new Map<Prefill, Link>();

beforeAll(async () => {
  const extraFlags: Record<string, readonly string[]> = {};
  for (const name of NAMES) {
    const ports = [await freePort(), await freePort()] as const;
    const listen = ["--listen", `127.0.0.1:${ports[0]}`, "--transfer-listen", `127.0.0.1:${ports[1]}`];
    extraFlags[name] = [...listen, "--advertise-host", HOSTS[name]];
    links.set(name, await startLink(HOSTS[name], ports));
  }
  cluster = await startTiny({ prefill: 2, stepTokens: 64, leaseMs: LEASE_MS, extraFlags });
}, 60_000);
afterEach(() => setAll("whole"));
afterAll(async () => {
  await cluster?.stop();
  for (const link of links.values()) await link.close();
});

/** In the middle of a pull, raw or lossless. */
const LOST_AFTER_BYTES = 300_000;

/** Long enough that its transfer has a middle: some forty steps of 64 tokens. */
const prompt = (index: number) => `${index}: ${"the old mill by the river ".repeat(300)}`;

async function ask(index: number) {
  const response = await post(cluster, chatBody(prompt(index), { ignore_eos: true }));
  const answer = await answerOf(response);
  return { status: response.status, answer };
}

function setAll(state: LinkState): void {
  for (const link of links.values()) link.set(state);
}

/** Breaks the link over which so many bytes cross first; the other stays whole. */
async function loseFirst(bytes: number, state: LinkState): Promise<Prefill> {
  const lost = await Promise.race([...links].map(([name, link]) => link.setAfter(bytes, state).then(() => name)));
  for (const [name, link] of links) if (name !== lost) link.set("whole");
  return lost;
}

test.each(["cut", "silent"] as const)(
  "the link to one prefill worker is %s in the middle of a pull: the other serves, with the same tokens",
  async (state) => {
    const right = await ask(1);
    expect(right.answer.kvasir.kv_bytes_moved).toBeGreaterThan(2 * LOST_AFTER_BYTES);
    const losing = loseFirst(LOST_AFTER_BYTES, state);
    // Silence is noticed by the lack of progress: TCP gives up after many minutes, this test after one.
    const { status, answer } = await ask(1);
    const lost = await losing;
    expect(status).toBe(200);
    expect(answer.choices).toEqual(right.answer.choices);
    expect(answer.kvasir).not.toMatchObject({ prefill_worker: lost });
    setAll("whole");
    await expectNothingLeft(cluster);
  },
  60_000,
);

test.each(["cut", "silent"] as const)(
  "the links to both are %s: the decode worker computes the prompt, or the client has a typed error in time",
  async (state) => {
    const right = await ask(2);
    setAll(state);
    const { status, answer } = await ask(2);
    if (status === 200) {
      expect(answer.choices).toEqual(right.answer.choices);
      expect(answer.kvasir).toMatchObject({ local_prefill: true });
    } else {
      expect(answer.error.code).toMatch(/^(unavailable|deadline_exceeded|lease_expired)$/);
    }
    setAll("whole");
    await expectNothingLeft(cluster);
    await expect.poll(async () => (await ask(3)).answer.kvasir?.mode, { timeout: 40_000 }).toBe("split");
  },
  90_000,
);
