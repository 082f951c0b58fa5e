import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Question } from "./question.ts";
import { seamQuestion } from "./seams.ts";
import answerable from "./seams-answerable.json" with { type: "json" };

/** Documents of a question of the public sets: more would not fit two cores' patience. */
const DOCUMENTS_MAX = 6;
const HOTPOT_PER_QUESTION = 10;

export const SET_NAMES = ["seams", "hotpot", "musique"] as const;
export type SetName = (typeof SET_NAMES)[number];

/** Reads a set. The public ones lie in `dataDir/rag`; an error says so when they do not. */
export function loadSet(name: SetName, dataDir: string | undefined): readonly Question[] {
  switch (name) {
    case "seams":
      return answerable.indices.map(seamQuestion);
    case "hotpot":
      return hotpot(
        readJson(dataDir, "cognee_hotpot50_qa.json") as { question: string; answer: string }[],
        readJson(dataDir, "cognee_hotpot50_corpus.json") as string[],
      );
    case "musique":
      return musique(readJson(dataDir, "hipporag_musique_train100.json") as MusiqueRow[]);
  }
}

function readJson(dataDir: string | undefined, file: string): unknown {
  const path = join(dataDir ?? "", "rag", file);
  if (dataDir === undefined || !existsSync(path)) {
    throw new Error(`${path} is not there; name the directory that has rag/${file} with --data or KVASIR_DATA`);
  }
  return JSON.parse(readFileSync(path, "utf8"));
}

/** HotpotQA: the corpus has ten passages for each question, in the questions' order. */
function hotpot(rows: readonly { question: string; answer: string }[], corpus: readonly string[]): Question[] {
  return rows.map(({ question, answer }, index) => ({
    id: `hotpot-${index}`,
    documents: corpus
      .slice(index * HOTPOT_PER_QUESTION, index * HOTPOT_PER_QUESTION + DOCUMENTS_MAX)
      .map((text) => ({ text })),
    question,
    gold: answer,
  }));
}

interface MusiqueRow {
  readonly id: string;
  readonly question: string;
  readonly answer: string;
  readonly paragraphs: readonly {
    readonly title: string;
    readonly paragraph_text: string;
    readonly is_supporting: boolean;
  }[];
}

/** MuSiQue: what supports the answer, filled up with distractors, in the file's order. */
function musique(rows: readonly MusiqueRow[]): Question[] {
  return rows.map(({ id, question, answer, paragraphs }) => {
    const supporting = paragraphs.filter((paragraph) => paragraph.is_supporting);
    const others = paragraphs.filter((paragraph) => !paragraph.is_supporting);
    const kept = new Set([...supporting, ...others].slice(0, DOCUMENTS_MAX));
    const documents = paragraphs
      .filter((paragraph) => kept.has(paragraph))
      .map(({ title, paragraph_text }) => ({ title, text: paragraph_text }));
    return { id, documents, question, gold: answer };
  });
}
