import type { KvAccuracy } from "@kvasir/core";

/**
 * How many tokens of a prompt that was computed elsewhere have KV here that is not what would have been computed here: converted or lossily encoded on
 * its way, or approximate at its source already. Several sources may follow each other; what one left stays.
 */
export class ApproximateTokens {
  readonly #promptTokenCount: number;
  readonly #accuracy: KvAccuracy;
  /** First token that came from elsewhere. */
  #fetchedFrom: number | undefined;
  /** On the way, of pulls before this one and of all. */
  #lostBefore = 0;
  #lost = 0;
  #atSource = 0;
  #isSourceKnown = false;

  constructor(promptTokenCount: number, accuracy: KvAccuracy) {
    this.#promptTokenCount = promptTokenCount;
    this.#accuracy = accuracy;
  }

  get count(): number {
    const fetched = this.#promptTokenCount - (this.#fetchedFrom ?? this.#promptTokenCount);
    return Math.min(fetched, Math.max(this.#lost, this.#atSource));
  }

  /** A source is asked that has said nothing yet. */
  sourceAsked(): void {
    this.#isSourceKnown = false;
  }

  pullBegins(tokenBegin: number): void {
    this.#fetchedFrom ??= tokenBegin;
    this.#lostBefore = this.#lost;
  }

  /** `verifiedTokenCount`: tokens of the prompt that are here; `lossyCount`: of this pull's, those at a lossy level. */
  pulled(verifiedTokenCount: number, lossyCount: number, isConverted: boolean): void {
    this.#lost = isConverted ? verifiedTokenCount - (this.#fetchedFrom ?? 0) : this.#lostBefore + lossyCount;
  }

  /** The source has computed the prompt, from KV of which so much at the end is approximate. */
  sourceTold(approximateTokenCount: number): void {
    this.#isSourceKnown = true;
    this.#atSource = Math.max(this.#atSource, approximateTokenCount);
  }

  /** The source is lost. Unless it said how exact its KV is, what came from it counts as approximate where the request allows that. */
  sourceLost(verifiedTokenCount: number): void {
    if (this.#isSourceKnown || this.#accuracy === "exact") return;
    this.#atSource = Math.max(this.#atSource, verifiedTokenCount - (this.#fetchedFrom ?? verifiedTokenCount));
  }
}
