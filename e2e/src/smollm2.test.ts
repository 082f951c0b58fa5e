import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startLocalCluster } from "@kvasir/cli";
import { resolveModel } from "@kvasir/models";
import { expect, test } from "vitest";
import { answerOf, CACHE_DIR, chatBody, expectMoved, expectNothingLeft, metric, post, processOf } from "./support.ts";

/** 30 layers, keys and values, 3 heads of 64, bf16. */
const KV_BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * 2;

test("SmolLM2 answers from two documents, prefilled by one process and decoded by another", async () => {
  const model = await resolveModel("smollm2", CACHE_DIR, () => undefined);
  const cluster = await startLocalCluster({
    model: model.directory,
    servedModelName: "smollm2",
    prefill: 1,
    decode: 1,
    mixed: 0,
    port: 0,
    logDir: mkdtempSync(join(tmpdir(), "kvasir-e2e-")),
    kvBytes: "128MiB",
  });
  try {
    const documents = [
      { title: "The Old Mill", text: "The Old Mill in Harrow was built by Peter Ludd, a mason who lived in Harrow." },
      {
        title: "The Stone Bridge",
        text: "The Stone Bridge in Harrow was opened in 1874 by the mayor. It has four arches.",
      },
    ];
    const ask = async (question: string) => {
      const response = await post(cluster, chatBody(question, { model: "smollm2", documents, max_tokens: 40 }));
      expect(response.status).toBe(200);
      return answerOf(response);
    };
    const mill = await ask("Who built the Old Mill in Harrow?");
    expect(mill.choices[0].message.content).toContain("Peter Ludd");
    expect(mill.kvasir.mode).toBe("split");
    expectMoved(mill.kvasir.kv_bytes_moved, mill.usage.prompt_tokens, KV_BYTES_PER_TOKEN);
    const bridge = await ask("In which year was the Stone Bridge opened?");
    expect(bridge.choices[0].message.content).toContain("1874");
    expect(await metric(processOf(cluster, "decode"), "kvasir_sidecar_prompt_tokens_computed_total")).toBe(0);
    await expectNothingLeft(cluster);
  } finally {
    await cluster.stop();
  }
}, 120_000);
