/** The mean gap between a request's tokens, over its answers, as they come from the worker. Times in milliseconds. */
export class TokenGaps {
  readonly #choices = new Map<number, { readonly firstMs: number; lastMs: number; count: number }>();

  tokens(choice: number, count: number, nowMs: number): void {
    const known = this.#choices.get(choice);
    if (known === undefined) this.#choices.set(choice, { firstMs: nowMs, lastMs: nowMs, count });
    else {
      known.lastMs = nowMs;
      known.count += count;
    }
  }

  /** 0 while no answer has two tokens. */
  get meanMs(): number {
    let ms = 0;
    let gapCount = 0;
    for (const { firstMs, lastMs, count } of this.#choices.values()) {
      ms += lastMs - firstMs;
      gapCount += count - 1;
    }
    return gapCount > 0 ? ms / gapCount : 0;
  }
}
