import { assert } from "../assert.ts";

export interface OutputLengthOptions {
  /** Share of answers that shall not be longer than what is predicted. */
  readonly quantile: number;
  /** Of a class that has seen nothing. */
  readonly priorTokenCount: number;
  /** Classes remembered; the one unused longest is forgotten first. */
  readonly classMax: number;
}

export const OUTPUT_LENGTH_DEFAULTS: OutputLengthOptions = { quantile: 0.7, priorTokenCount: 256, classMax: 4_096 };

/** Of one answer, in tokens. */
export interface PredictedLength {
  readonly meanTokens: number;
  /** A share of the answers, the quantile's, is not longer. */
  readonly quantileTokens: number;
}

interface LengthClass {
  mean: number;
  quantile: number;
  count: number;
}

/** Weight of the newest answer in the mean once a class has seen enough. */
const MEAN_GAIN = 0.02;
/** Step of the quantile, as a share of the mean. */
const QUANTILE_GAIN = 0.05;
/** Answers of a kind of prompt before they say more than its length does. */
const KIND_COUNT_MIN = 8;

/**
 * How long an answer will be, from what answers of its class were: a mean, and a quantile that calibrates itself: after each answer it goes up
 * by `q` of a step if the answer was longer and down by `1 − q` if it was not, so that in the long run a share q of the answers is not longer,
 * whatever their distribution (Robbins–Monro; Gibbs & Candès, NeurIPS 2021, for distributions that change). A class is a tenant and what it
 * calls the kind of its prompt, once some of these were seen, else the prompt's length to a power of two. A hint: what is reserved is always the most
 * that was asked for.
 */
export class OutputLengthPredictor {
  readonly #options: OutputLengthOptions;
  readonly #classes = new Map<string, LengthClass>();

  constructor(options: OutputLengthOptions = OUTPUT_LENGTH_DEFAULTS) {
    assert(options.quantile > 0 && options.quantile < 1, `quantile ${options.quantile} is not within 0 and 1`);
    this.#options = options;
  }

  observe(tenant: string, promptTokenCount: number, outputTokenCount: number, promptClass = ""): void {
    this.#learn(lengthName(tenant, promptTokenCount), outputTokenCount);
    if (promptClass !== "") this.#learn(kindName(tenant, promptClass), outputTokenCount);
  }

  /** Never more than `maxTokens`, what the request allows. */
  predict(tenant: string, promptTokenCount: number, maxTokens: number, promptClass = ""): PredictedLength {
    const { priorTokenCount } = this.#options;
    const kind = promptClass === "" ? undefined : this.#classes.get(kindName(tenant, promptClass));
    const seen =
      kind !== undefined && kind.count >= KIND_COUNT_MIN
        ? kind
        : this.#classes.get(lengthName(tenant, promptTokenCount));
    const { mean, quantile } = seen ?? { mean: priorTokenCount, quantile: priorTokenCount };
    return { meanTokens: Math.min(maxTokens, mean), quantileTokens: Math.min(maxTokens, quantile) };
  }

  #learn(name: string, outputTokenCount: number): void {
    const known = this.#classes.get(name);
    const entry = known ?? { mean: outputTokenCount, quantile: outputTokenCount, count: 0 };
    entry.count++;
    entry.mean += Math.max(MEAN_GAIN, 1 / entry.count) * (outputTokenCount - entry.mean);
    const step = Math.max(1, entry.mean) * Math.max(QUANTILE_GAIN, 1 / entry.count);
    entry.quantile += step * (this.#options.quantile - (outputTokenCount <= entry.quantile ? 1 : 0));
    entry.quantile = Math.max(1, entry.quantile);
    this.#classes.delete(name);
    this.#classes.set(name, entry);
    if (this.#classes.size <= this.#options.classMax) return;
    const oldest = this.#classes.keys().next().value;
    if (oldest !== undefined) this.#classes.delete(oldest);
  }
}

function lengthName(tenant: string, promptTokenCount: number): string {
  return `${tenant} ${Math.ceil(Math.log2(Math.max(1, promptTokenCount)))}`;
}

function kindName(tenant: string, promptClass: string): string {
  return `${tenant} kind ${promptClass}`;
}
