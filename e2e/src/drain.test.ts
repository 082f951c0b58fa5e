import type { LocalCluster } from "@kvasir/cli";
import { afterAll, beforeAll, expect, test } from "vitest";
import { answerOf, chatBody, expectNothingLeft, openStream, post, startTiny } from "./support.ts";

let cluster: LocalCluster;
beforeAll(async () => {
  cluster = await startTiny({ decode: 2, prefill: 2 });
}, 60_000);
afterAll(() => cluster?.stop());

// Long enough to be still under way after what a test does meanwhile, on a busy machine too.
const LONG = chatBody("Tell me about the sea.", { max_tokens: 1_500, ignore_eos: true, seed: 5, temperature: 0.8 });

/** A stream that has begun: which decode worker runs it, and the rest of its text. */
async function begin() {
  const stream = await openStream(cluster, LONG);
  let text = "";
  let worker = "";
  const take = (event: Awaited<ReturnType<typeof stream.next>>) => {
    if (event === undefined || event === "done") return event === "done";
    if ("error" in event) throw new Error(JSON.stringify(event.error));
    const { choices } = event as { choices?: readonly { delta?: { content?: string } }[] };
    text += choices?.[0]?.delta?.content ?? "";
    return false;
  };
  for (let i = 0; i < 5; i++) take(await stream.next());
  for (const name of ["decode-0", "decode-1"]) {
    const { running } = await drainState(name);
    if (running > 0) worker = name;
  }
  return {
    worker,
    async rest(): Promise<string> {
      for (;;) {
        const event = await stream.next();
        if (event === undefined) throw new Error("the stream was cut");
        if (take(event)) return text;
      }
    },
  };
}

async function drainState(name: string): Promise<{ state: string; running: number }> {
  const { adminAddress } = cluster.process(name);
  return (await (await fetch(`http://${adminAddress}/drain`)).json()) as { state: string; running: number };
}

async function askToDrain(name: string, query = ""): Promise<Response> {
  return fetch(`http://${cluster.process(name).adminAddress}/drain${query}`, { method: "POST" });
}

test("a decode worker that drains finishes its stream, is given nothing new, says so, and ends", async () => {
  const expected = (await answerOf(await post(cluster, LONG))).choices[0].message.content;
  const stream = await begin();
  expect(await drainState(stream.worker)).toMatchObject({ state: "serving", running: 1 });
  const asked = await askToDrain(stream.worker);
  expect([asked.status, (await asked.json()) as object]).toMatchObject([202, { state: "draining" }]);
  const ready = await fetch(`http://${cluster.process(stream.worker).adminAddress}/ready`);
  expect([ready.status, await ready.text()]).toEqual([503, '{"ready":false,"reason":"the worker is draining"}']);
  for (let i = 0; i < 4; i++) {
    const answer = await answerOf(await post(cluster, chatBody("Who built the old mill?")));
    expect(answer.kvasir.decode_worker).not.toBe(stream.worker);
  }
  expect(await stream.rest()).toBe(expected);
  await cluster.process(stream.worker).restart();
  await expectNothingLeft(cluster);
}, 60_000);

test("at the deadline what still runs goes on elsewhere, at the same token", async () => {
  const expected = (await answerOf(await post(cluster, LONG))).choices[0].message.content;
  const stream = await begin();
  expect((await askToDrain(stream.worker, "?deadline_ms=soon")).status).toBe(400);
  expect((await askToDrain(stream.worker, "?deadline_ms=50")).status).toBe(202);
  expect(await stream.rest()).toBe(expected);
  await cluster.process(stream.worker).restart();
  await expectNothingLeft(cluster);
}, 60_000);

test("a rolling restart of every component under load fails no request", async () => {
  let isOver = false;
  const statuses: number[] = [];
  const run = async () => {
    while (!isOver) {
      const response = await post(cluster, chatBody("Who built the old mill?", { max_tokens: 16 })).catch(
        () => undefined,
      );
      await response?.text().catch(() => undefined);
      statuses.push(response?.status ?? 0);
    }
  };
  const runs = [run(), run(), run()];
  for (const name of ["prefill-0", "prefill-1", "decode-0", "decode-1", "router-0"]) {
    const process = cluster.process(name);
    await process.kill("SIGTERM");
    await process.restart();
    await cluster.ready();
  }
  isOver = true;
  await Promise.all(runs);
  expect(statuses.length).toBeGreaterThan(20);
  expect(new Set(statuses)).toEqual(new Set([200]));
  await expectNothingLeft(cluster);
}, 120_000);
