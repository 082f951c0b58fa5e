import type { LocalCluster } from "@kvasir/cli";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { drainStateOf, Standstill, streamInTheMiddle } from "./standstill.ts";
import { answerOf, chatBody, expectNothingLeft, post, startTiny } from "./support.ts";

let cluster: LocalCluster;
beforeAll(async () => {
  cluster = await startTiny({ decode: 2, prefill: 2 });
}, 60_000);
afterAll(() => cluster?.stop());

const LONG = chatBody("Tell me about the sea.", { max_tokens: 1_500, ignore_eos: true, seed: 5, temperature: 0.8 });

const standstill = new Standstill();
afterEach(() => standstill.end());

/** A stream that cannot end before `standstill` does: which decode worker runs it, and its whole text. */
async function begin() {
  const { events, worker, next } = await streamInTheMiddle(cluster, standstill, LONG);
  const textOf = (event: Record<string, unknown>) => {
    const { choices } = event as { choices?: readonly { delta?: { content?: string } }[] };
    return choices?.[0]?.delta?.content ?? "";
  };
  return {
    worker: worker.name,
    async text(): Promise<string> {
      let text = events.map(textOf).join("");
      for (let event = await next(); event !== "done"; event = await next()) {
        if (event === undefined) throw new Error("the stream was cut");
        if ("error" in event) throw new Error(JSON.stringify(event.error));
        text += textOf(event);
      }
      return text;
    },
  };
}

const drainState = (name: string) => drainStateOf(cluster.process(name));

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
  standstill.end();
  expect(await stream.text()).toBe(expected);
  await cluster.process(stream.worker).restart();
  await expectNothingLeft(cluster);
}, 60_000);

test("at the deadline what still runs goes on elsewhere, at the same token", async () => {
  const expected = (await answerOf(await post(cluster, LONG))).choices[0].message.content;
  const stream = await begin();
  expect((await askToDrain(stream.worker, "?deadline_ms=soon")).status).toBe(400);
  expect((await askToDrain(stream.worker, "?deadline_ms=50")).status).toBe(202);
  expect(await stream.text()).toBe(expected);
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
