import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type LocalCluster, startLocalCluster } from "@kvasir/cli";
import { resolveModel } from "@kvasir/models";
import { afterAll, expect, test } from "vitest";
import { CACHE_DIR, type ChatBody, chatBody, expectNothingLeft, openStream, post, startTiny } from "./support.ts";

const clusters: LocalCluster[] = [];
afterAll(() => Promise.all(clusters.map((cluster) => cluster.stop())));

const SCHEMA = {
  type: "object",
  properties: {
    city: { enum: ["Harrow", "Leeds"] },
    year: { type: "integer", minimum: 1000, maximum: 2100 },
    tags: { type: "array", items: { $ref: "#/$defs/tag" }, maxItems: 2 },
  },
  required: ["city", "year", "tags"],
  additionalProperties: false,
  $defs: { tag: { type: "string", maxLength: 4 } },
};
const JSON_SCHEMA = { type: "json_schema", json_schema: { name: "place", schema: SCHEMA, strict: true } };

interface Choice {
  readonly message?: { readonly content: string };
  readonly text?: string;
  readonly finish_reason: string;
}

async function ask(cluster: LocalCluster, fields: ChatBody, path?: string): Promise<{ text: string; finish: string }> {
  const body = path === undefined ? chatBody("Where is the mill?", fields) : { model: "tiny", prompt: "x", ...fields };
  const response = await post(cluster, body, {}, path);
  const answer = (await response.json()) as { choices: readonly [Choice] };
  expect(response.status, JSON.stringify(answer)).toBe(200);
  const [choice] = answer.choices;
  return { text: choice.message?.content ?? choice.text ?? "", finish: choice.finish_reason };
}

/** A model of random weights writes noise: what matches does so because of the mask alone. */
async function answers(cluster: LocalCluster): Promise<unknown[]> {
  const found: unknown[] = [];
  for (const seed of [1, 2, 3]) {
    const sampling = { temperature: 1, seed, max_tokens: 400 };
    const place = await ask(cluster, { ...sampling, response_format: JSON_SCHEMA });
    expect(place.finish).toBe("stop");
    const value = JSON.parse(place.text) as { city: string; year: number; tags: string[] };
    expect(Object.keys(value)).toEqual(["city", "year", "tags"]);
    expect(["Harrow", "Leeds"]).toContain(value.city);
    expect(value.year >= 1000 && value.year <= 2100 && Number.isInteger(value.year)).toBe(true);
    expect(value.tags.length <= 2 && value.tags.every((tag) => [...tag].length <= 4)).toBe(true);
    const date = await ask(cluster, { ...sampling, guided_regex: "[12][0-9]{3}-(0[1-9]|1[0-2])" });
    expect(date.text).toMatch(/^[12][0-9]{3}-(0[1-9]|1[0-2])$/);
    const choice = await ask(cluster, { ...sampling, guided_choice: ["yes", "no (why?)"] }, "/v1/completions");
    expect(["yes", "no (why?)"]).toContain(choice.text);
    const json = await ask(cluster, { ...sampling, structured_outputs: { json: { type: ["null", "boolean"] } } });
    expect([null, true, false]).toContain(JSON.parse(json.text));
    found.push(place, date, choice, json);
  }
  return found;
}

test("noise matches schema, expression and choice, the same in split and mixed placement", async () => {
  const split = await startTiny();
  clusters.push(split);
  const throughSplit = await answers(split);
  expect(await answers(split)).toEqual(throughSplit);
  const mixed = await startTiny({ prefill: 0, decode: 0, mixed: 1 });
  clusters.push(mixed);
  expect(await answers(mixed)).toEqual(throughSplit);

  // Many at once give what each gives alone.
  const together = await Promise.all(
    [1, 2, 3].map((seed) => ask(mixed, { temperature: 1, seed, max_tokens: 400, response_format: JSON_SCHEMA })),
  );
  expect(together).toEqual([throughSplit[0], throughSplit[4], throughSplit[8]]);

  const several = { model: "tiny", prompt: "x", n: 4, temperature: 1, seed: 5, guided_regex: "[a-z]{6}[0-9]{3}" };
  const through = async (cluster: LocalCluster) => {
    const response = await post(cluster, several, {}, "/v1/completions");
    const { choices } = (await response.json()) as { choices: readonly Choice[] };
    return choices.map((choice) => choice.text);
  };
  const texts = await through(split);
  expect(texts).toHaveLength(4);
  for (const text of texts) expect(text).toMatch(/^[a-z]{6}[0-9]{3}$/);
  expect(new Set(texts).size).toBeGreaterThan(1);
  expect(await through(mixed)).toEqual(texts);

  const long = { type: "array", items: { const: "a long text" }, minItems: 50 };
  const cut = await ask(split, { guided_json: long, max_tokens: 12 });
  expect(cut.finish).toBe("length");
  expect(cut.text.startsWith("[")).toBe(true);

  // A client that leaves in the middle leaves nothing behind.
  const stream = await openStream(
    split,
    chatBody("x", { guided_json: long, max_tokens: 400 }),
    AbortSignal.timeout(300),
  );
  while ((await stream.next()) !== undefined);
  await expectNothingLeft(split);
  await expectNothingLeft(mixed);
}, 120_000);

test("a constraint that cannot be honoured is refused by the field that holds it", async () => {
  const [cluster = await startTiny()] = clusters;
  const refused = async (fields: ChatBody) => {
    const response = await post(cluster, chatBody("x", fields));
    const { error } = (await response.json()) as { error: { param: string; message: string } };
    return { status: response.status, ...error };
  };
  const field = (param: string) => ({ status: 400, param });
  const wrong = { type: "json_schema", json_schema: { name: "x", schema: { type: "color" } } };
  expect(await refused({ response_format: wrong })).toMatchObject(field("response_format.json_schema.schema"));
  expect(await refused({ guided_json: "{" })).toMatchObject(field("guided_json"));
  const regex = await refused({ guided_regex: "(" });
  expect(regex).toMatchObject(field("guided_regex"));
  expect(regex.message).toMatch(/^guided_regex: /);
  expect(await refused({ guided_regex: "(", stream: true })).toMatchObject(field("guided_regex"));
  expect(await refused({ structured_outputs: { regex: "[" } })).toMatchObject(field("structured_outputs.regex"));
  expect(await refused({ guided_choice: [] })).toMatchObject(field("guided_choice"));
  expect(await refused({ guided_regex: "a", guided_choice: ["a"] })).toMatchObject(field("guided_choice"));
  expect(await refused({ guided_regex: "a", ignore_eos: true })).toMatchObject(field("ignore_eos"));
  expect(await refused({ guided_grammar: "start: a" })).toMatchObject(field("guided_grammar"));
  expect(await refused({ response_format: { type: "yaml" } })).toMatchObject(field("response_format.type"));
  await expectNothingLeft(cluster);
}, 60_000);

test("SmolLM2 writes JSON by a schema", async () => {
  const model = await resolveModel("smollm2", CACHE_DIR, () => undefined);
  const cluster = await startLocalCluster({
    model: model.directory,
    servedModelName: "smollm2",
    prefill: 0,
    decode: 0,
    mixed: 1,
    port: 0,
    logDir: mkdtempSync(join(tmpdir(), "kvasir-e2e-")),
    kvBytes: "128MiB",
  });
  clusters.push(cluster);
  const fields = { model: "smollm2", temperature: 0, max_tokens: 120, response_format: JSON_SCHEMA };
  const question = "The mill in Harrow was built in 1874. Give city, year and tags as JSON.";
  const response = await post(cluster, chatBody(question, fields));
  const { choices } = (await response.json()) as { choices: readonly [Choice] };
  expect(choices[0].finish_reason).toBe("stop");
  expect(JSON.parse(choices[0].message?.content ?? "")).toMatchObject({ city: "Harrow" });
  await expectNothingLeft(cluster);
}, 120_000);
