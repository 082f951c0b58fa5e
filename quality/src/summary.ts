import { holdsGold, type Question } from "./question.ts";

/** One line of the sidecar's `quality` command. */
export interface Line {
  readonly id: string;
  readonly method: string;
  readonly context_tokens: number;
  readonly computed_tokens: number;
  /** KL(full ‖ method) in nats, before each token of the full pass's answer and at its end. */
  readonly kl: readonly number[];
  readonly agreements: number;
  readonly answer: readonly number[];
  readonly identical: boolean;
}

export interface Summary {
  readonly method: string;
  readonly questions: number;
  readonly places: number;
  readonly klMean: number;
  readonly klP99: number;
  readonly klMax: number;
  /** Shares, 0 to 1. */
  readonly agreement: number;
  readonly identical: number;
  readonly computed: number;
  /** Of the questions with a known answer that a full pass answers right; undefined when there is none. */
  readonly accuracy: number | undefined;
  readonly answerable: number;
}

/** Each method over all questions. Places weigh alike, whatever question they are of. */
export function summarize(
  lines: readonly Line[],
  questions: ReadonlyMap<string, Question>,
  textOf: (ids: readonly number[]) => string,
): readonly Summary[] {
  const isRight = (line: Line) => {
    const gold = questions.get(line.id)?.gold;
    return gold !== undefined && holdsGold(textOf(line.answer), gold);
  };
  const answerable = new Set(lines.filter((line) => line.method === "full" && isRight(line)).map((line) => line.id));
  const methods = [...new Set(lines.map((line) => line.method))];
  return methods.map((method) => {
    const own = lines.filter((line) => line.method === method);
    const kl = own.flatMap((line) => line.kl).sort((a, b) => a - b);
    const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
    const judged = own.filter((line) => answerable.has(line.id));
    return {
      method,
      questions: own.length,
      places: kl.length,
      klMean: sum(kl) / kl.length,
      klP99: kl[Math.max(0, Math.ceil(kl.length * 0.99) - 1)] ?? Number.NaN,
      klMax: kl.at(-1) ?? Number.NaN,
      agreement: sum(own.map((line) => line.agreements)) / kl.length,
      identical: own.filter((line) => line.identical).length / own.length,
      computed: sum(own.map((line) => line.computed_tokens)) / sum(own.map((line) => line.context_tokens)),
      accuracy: judged.length === 0 ? undefined : judged.filter(isRight).length / judged.length,
      answerable: judged.length,
    };
  });
}

export const HEADER = [
  "method",
  "computed",
  "KL mean",
  "KL p99",
  "KL max",
  "next token agrees",
  "whole answer the same",
  "right, of those a full pass gets right",
];

export function rowOf(summary: Summary): string[] {
  const share = (value: number) => `${(100 * value).toFixed(1)} %`;
  return [
    summary.method,
    share(summary.computed),
    summary.klMean.toFixed(4),
    summary.klP99.toFixed(3),
    summary.klMax.toFixed(2),
    share(summary.agreement),
    share(summary.identical),
    summary.accuracy === undefined ? "–" : `${share(summary.accuracy)} of ${summary.answerable}`,
  ];
}
