/** A question over documents. */
export interface Question {
  readonly id: string;
  readonly documents: readonly { readonly title?: string; readonly text: string }[];
  readonly question: string;
  /** What a right answer contains; absent where it is not known. */
  readonly gold?: string;
}

/** Whether an answer holds the gold answer, case and punctuation aside. */
export function holdsGold(answer: string, gold: string): boolean {
  const plain = (text: string) =>
    ` ${text
      .toLowerCase()
      .replace(/[^\p{L}\p{N}]+/gu, " ")
      .trim()} `;
  return plain(answer).includes(plain(gold));
}
