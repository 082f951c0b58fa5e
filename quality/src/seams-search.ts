import { holdsGold, type Question } from "./question.ts";
import { isUnambiguous, seamQuestion } from "./seams.ts";
import type { Line } from "./summary.ts";

const BATCH = 50;
const CANDIDATES_MAX = 5_000;

/** Numbers of the first `count` seam questions that a full pass answers right. */
export async function findAnswerable(
  count: number,
  answer: (questions: readonly Question[]) => Promise<readonly Line[]>,
  textOf: (ids: readonly number[]) => string,
  say: (line: string) => void,
): Promise<number[]> {
  const found: number[] = [];
  for (let first = 0; first < CANDIDATES_MAX && found.length < count; first += BATCH) {
    const numbers = Array.from({ length: BATCH }, (_, index) => first + index);
    const candidates = numbers.filter((number) => isUnambiguous(seamQuestion(number)));
    const questions = candidates.map(seamQuestion);
    const lines = await answer(questions);
    for (const [index, line] of lines.entries()) {
      if (holdsGold(textOf(line.answer), questions[index]?.gold ?? "\0")) found.push(candidates[index] ?? 0);
    }
    say(`${first + BATCH} tried, ${found.length} answered right`);
  }
  if (found.length < count) throw new Error(`only ${found.length} of ${CANDIDATES_MAX} questions are answered right`);
  return found.slice(0, count);
}
