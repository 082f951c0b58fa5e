import { assert } from "../assert.ts";

/** One answer as its client has it. */
export interface ChoiceProgress {
  readonly index: number;
  readonly tokenIds: readonly number[];
  readonly ended: boolean;
}

/** What the client has of each answer: all that another worker must know to go on, beside the request itself. */
export class RequestProgress {
  readonly #choices: { readonly tokenIds: number[]; ended: boolean }[];
  readonly #maxTokens: number;
  #openCount: number;

  constructor(choiceCount: number, maxTokens: number) {
    assert(choiceCount >= 1 && maxTokens >= 1, `${choiceCount} answers of ${maxTokens} tokens`);
    this.#choices = Array.from({ length: choiceCount }, () => ({ tokenIds: [], ended: false }));
    this.#maxTokens = maxTokens;
    this.#openCount = choiceCount;
  }

  /** Over all answers. */
  get tokenCount(): number {
    return this.#choices.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0);
  }

  get isOver(): boolean {
    return this.#openCount === 0;
  }

  isOpen(index: number): boolean {
    return this.#choices[index]?.ended === false;
  }

  /** Takes tokens of an open answer into account. */
  add(index: number, tokenIds: readonly number[]): void {
    const choice = this.#choices[index];
    assert(choice?.ended === false, `tokens for answer ${index}, which is not open`);
    for (const tokenId of tokenIds) choice.tokenIds.push(tokenId);
  }

  /** False when the answer had ended before. */
  end(index: number): boolean {
    const choice = this.#choices[index];
    if (choice === undefined || choice.ended) return false;
    choice.ended = true;
    this.#openCount--;
    return true;
  }

  /** Open answers whose last token came while word of their end did not. */
  complete(): readonly number[] {
    return [...this.#choices.keys()].filter(
      (index) => this.isOpen(index) && (this.#choices[index]?.tokenIds.length ?? 0) >= this.#maxTokens,
    );
  }

  /** Answers of which there is something to tell; empty before the first token. */
  soFar(): readonly ChoiceProgress[] {
    return this.#choices
      .map(({ tokenIds, ended }, index) => ({ index, tokenIds, ended }))
      .filter(({ tokenIds, ended }) => ended || tokenIds.length > 0);
  }
}
