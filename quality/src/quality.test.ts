import { existsSync } from "node:fs";
import { join } from "node:path";
import { resolveModel } from "@kvasir/models";
import { loadModelFacts, loadTokenizer } from "@kvasir/tokenizer";
import { expect, test } from "vitest";
import { loadSet } from "./datasets.ts";
import { cut, itemFrom } from "./item.ts";
import { holdsGold } from "./question.ts";
import { runQuality } from "./run-sidecar.ts";
import { seamQuestion } from "./seams.ts";
import { type Line, summarize } from "./summary.ts";

const REPOSITORY = join(import.meta.dirname, "../..");
const SIDECAR = process.env.KVASIR_SIDECAR_BINARY ?? join(REPOSITORY, "services/sidecar/target/release/kvasir-sidecar");

test("the parts of a prompt are the prompt, each document in its own", () => {
  const prompt = "Be kind.\n\nDocument 1: Mill\nIt is old.\n\nDocument 2:\nIt is new.<end>Why?";
  const parts = cut(prompt, ["It is old.", "It is new."]);
  expect(parts).toEqual(["Be kind.", "\n\nDocument 1: Mill\nIt is old.", "\n\nDocument 2:\nIt is new.", "<end>Why?"]);
  expect(() => cut(prompt, ["It was old."])).toThrow("It was old.");
});

test("seam questions are the same each time, and the 200 that are asked have their answer behind a pronoun only", () => {
  expect(seamQuestion(17)).toEqual(seamQuestion(17));
  const questions = loadSet("seams", undefined);
  expect(new Set(questions.map((question) => question.id)).size).toBe(200);
  for (const { documents, question, gold = "" } of questions) {
    const holders = documents.filter(({ text }) => holdsGold(text, gold));
    expect(holders, question).toEqual([expect.objectContaining({ text: expect.stringMatching(/^(She|He) /) })]);
    const before = documents[documents.indexOf(holders[0] as (typeof documents)[number]) - 1];
    expect(question).toContain(before?.text.match(/named (.*)\.$/)?.[1] ?? "nobody");
  }
  expect(() => loadSet("hotpot", "/nowhere")).toThrow("--data");
});

test("figures are of places, not of questions, and accuracy of what a full pass gets right", () => {
  const line = (id: string, method: string, fields: Partial<Line>): Line => ({
    ...{ id, method, context_tokens: 100, computed_tokens: 10, kl: [0], agreements: 1, answer: [1], identical: true },
    ...fields,
  });
  const lines = [
    line("a", "full", { answer: [1] }),
    line("b", "full", { answer: [2] }),
    line("a", "alone", { kl: [0.5, 0.1, 0], agreements: 1, identical: false, answer: [2] }),
    line("b", "alone", { kl: [0], agreements: 1 }),
  ];
  const question = (id: string) => [id, { id, documents: [], question: "?", gold: "mill" }] as const;
  const summary = summarize(lines, new Map([question("a"), question("b")]), ([id]) => (id === 1 ? "The Mill." : "no"));
  expect(summary[1]).toMatchObject({
    method: "alone",
    places: 4,
    klMax: 0.5,
    agreement: 0.5,
    identical: 0.5,
    computed: 0.1,
  });
  expect(summary[1]?.klMean).toBeCloseTo(0.15);
  expect([summary[1]?.accuracy, summary[1]?.answerable]).toEqual([0, 1]);
});

test("the instrument on the tiny model: nothing is lost by a full pass, something without turning keys", async () => {
  expect(existsSync(SIDECAR)).toBe(true);
  const model = await resolveModel("tiny", process.env.KVASIR_CACHE ?? join(REPOSITORY, ".cache"), () => undefined);
  const [tokenizer, facts] = [await loadTokenizer(model.directory), await loadModelFacts(model.directory)];
  const questions = [0, 1, 2].map(seamQuestion);
  const items = await Promise.all(questions.map((question) => itemFrom(tokenizer, facts, question, 6)));
  const engine = { sidecar: SIDECAR, model: model.directory, kvDtype: "f32", weights: "stored", threads: 1 };
  const lines = await runQuality({ ...engine, items, methods: ["full", "alone", "alone-unturned"] });
  const kl = (method: string) => lines.filter((line) => line.method === method).flatMap((line) => line.kl);
  expect(lines).toHaveLength(9);
  expect(kl("full").every((value) => value === 0)).toBe(true);
  expect(Math.max(...kl("alone"))).toBeGreaterThan(0);
  expect(kl("alone-unturned")).not.toEqual(kl("alone"));
  const refused = runQuality({ ...engine, items, methods: ["none"] });
  await expect(refused).rejects.toThrow("there is no method none; there is: full, alone");
});
