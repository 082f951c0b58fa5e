import { assert } from "../assert.ts";

export interface LeastSquaresOptions {
  /** Typical size of each feature; coefficients are fitted to features divided by it. */
  readonly scales: readonly number[];
  /** Coefficients believed at the beginning. */
  readonly prior: readonly number[];
  /** Standard deviation of the prior, as a share of it. Larger: the first samples move more. */
  readonly priorDoubt: number;
  /** Weight of a sample one sample ago, below 1. Smaller: faster after a change, noisier. */
  readonly forgetting: number;
  /** Residuals beyond so many times the usual one count as if they were at that bound (Huber). Smaller: less is believed at once. */
  readonly residualBound: number;
}

/** Usual relative noise of a sample, the unit in which the variance is kept. */
const NOISE = 0.05;
/** Each coefficient is doubted as if it explained at least this share of a typical value. */
const SHARE_MIN = 0.02;
const DEVIATION_GAIN = 0.05;
const DEVIATION_MIN = 0.01;
/** Outliers in a row, all too high or all too low, that are no outliers but a change. Larger: slower after a change; smaller: spikes count. */
const CHANGE_STREAK = 6;

/**
 * Linear regression that follows its samples: recursive least squares with exponential forgetting, made robust by bounding each residual's
 * influence. Cost O(n²) for n features. After Ljung, "System Identification" (1999, §11.2) and Huber's ψ (1964); each sample's deviation is
 * taken relative to the prediction, since long steps vary by more than short ones.
 */
export class RecursiveLeastSquares {
  readonly #options: LeastSquaresOptions;
  readonly #size: number;
  /** Of scaled features. */
  readonly #weights: Float64Array;
  /** Inverse correlation matrix, row-major. */
  readonly #variance: Float64Array;
  readonly #gain: Float64Array;
  readonly #scaled: Float64Array;
  /** Usual size of a residual, relative to the prediction. */
  #deviation = 1;
  /** Outliers in a row, negative when too low. */
  #streak = 0;
  #traceMax = 0;
  #sampleCount = 0;

  constructor(options: LeastSquaresOptions) {
    this.#options = options;
    const size = options.scales.length;
    assert(options.prior.length === size, `${options.prior.length} coefficients for ${size} features`);
    this.#size = size;
    this.#weights = Float64Array.from(options.prior, (value, index) => value * options.scales[index]!);
    this.#variance = new Float64Array(size * size);
    this.#doubt();
    this.#gain = new Float64Array(size);
    this.#scaled = new Float64Array(size);
  }

  get sampleCount(): number {
    return this.#sampleCount;
  }

  /** Usual relative error of a prediction. */
  get deviation(): number {
    return this.#deviation;
  }

  /** One for each feature, in the features' own units. */
  coefficients(): number[] {
    return Array.from(this.#weights, (weight, index) => weight / this.#options.scales[index]!);
  }

  /**
   * The most likely coefficients none of which is negative. One that is below zero is set to zero, and the others move as far as the samples
   * say that they stand for it (the conditional mean under the estimate's covariance); merely cutting it off would predict too much.
   */
  nonNegativeCoefficients(): number[] {
    if (this.#weights.every((weight) => weight >= 0)) return this.coefficients();
    const size = this.#size;
    const weights = Float64Array.from(this.#weights);
    const variance = Float64Array.from(this.#variance);
    for (let round = 0; round < size; round++) {
      const at = weights.indexOf(Math.min(...weights));
      const below = weights[at]!;
      const own = variance[at * size + at]!;
      if (below >= 0 || own <= 0) break;
      const column = Float64Array.from({ length: size }, (_, i) => variance[i * size + at]! / own);
      for (let i = 0; i < size; i++) {
        weights[i] = weights[i]! - column[i]! * below;
        for (let j = 0; j < size; j++) {
          variance[i * size + j] = variance[i * size + j]! - column[i]! * column[j]! * own;
        }
      }
      for (let i = 0; i < size; i++) {
        variance[i * size + at] = 0;
        variance[at * size + i] = 0;
      }
      weights[at] = 0;
    }
    return Array.from(weights, (weight, index) => Math.max(0, weight) / this.#options.scales[index]!);
  }

  predict(features: readonly number[]): number {
    let sum = 0;
    for (let i = 0; i < this.#size; i++) sum += (this.#weights[i]! * features[i]!) / this.#options.scales[i]!;
    return sum;
  }

  /** Learns from a sample. A value that is not a positive number is none. */
  observe(features: readonly number[], value: number): void {
    if (!Number.isFinite(value) || value <= 0) return;
    const { forgetting, residualBound, scales } = this.#options;
    const size = this.#size;
    const x = this.#scaled;
    // Relative errors: each sample is divided by its prediction.
    let predicted = 0;
    for (let i = 0; i < size; i++) {
      x[i] = features[i]! / scales[i]!;
      predicted += this.#weights[i]! * x[i]!;
    }
    const level = Math.max(predicted, value / 100, 1e-9);
    for (let i = 0; i < size; i++) x[i]! /= level;
    let residual = value / level;
    for (let i = 0; i < size; i++) residual -= this.#weights[i]! * x[i]!;
    const bound = residualBound * this.#deviation;
    const bounded = Math.max(-bound, Math.min(bound, residual));
    this.#noteStreak(bounded === residual ? 0 : Math.sign(residual));
    this.#deviation += DEVIATION_GAIN * (Math.abs(bounded) - this.#deviation);
    this.#deviation = Math.max(this.#deviation, DEVIATION_MIN);

    // A sample beyond the bound tells less, so it settles less as well: its noise counts as that much larger.
    let denominator = forgetting * (residual === bounded ? 1 : Math.abs(residual / bounded));
    for (let i = 0; i < size; i++) {
      let sum = 0;
      for (let j = 0; j < size; j++) sum += this.#variance[i * size + j]! * x[j]!;
      this.#gain[i] = sum;
    }
    for (let i = 0; i < size; i++) denominator += x[i]! * this.#gain[i]!;
    for (let i = 0; i < size; i++) this.#weights[i] = this.#weights[i]! + (this.#gain[i]! / denominator) * residual;
    this.#shrink(denominator);
    this.#sampleCount++;
  }

  /** Nothing is known of any coefficient but its present value. */
  #doubt(): void {
    this.#variance.fill(0);
    const total = this.#weights.reduce((sum, weight) => sum + Math.abs(weight), 0);
    this.#traceMax = 0;
    for (let i = 0; i < this.#size; i++) {
      const doubt = (this.#options.priorDoubt * Math.max(Math.abs(this.#weights[i]!), SHARE_MIN * total)) / NOISE;
      this.#variance[i * this.#size + i] = doubt ** 2;
      this.#traceMax += doubt ** 2;
    }
  }

  #noteStreak(direction: number): void {
    this.#streak = direction === 0 || direction * this.#streak < 0 ? direction : this.#streak + direction;
    if (Math.abs(this.#streak) < CHANGE_STREAK) return;
    this.#streak = 0;
    this.#deviation = 1;
    this.#doubt();
  }

  #shrink(denominator: number): void {
    const size = this.#size;
    const { forgetting } = this.#options;
    // Uncertainty never grows beyond the initial one: forgetting would blow up what the samples do not excite ("wind-up").
    let trace = 0;
    for (let i = 0; i < size; i++) {
      for (let j = 0; j < size; j++) {
        const at = i * size + j;
        this.#variance[at] = this.#variance[at]! - (this.#gain[i]! * this.#gain[j]!) / denominator;
      }
      trace += this.#variance[i * size + i]!;
    }
    if (trace / forgetting > this.#traceMax) return;
    for (let at = 0; at < this.#variance.length; at++) this.#variance[at] = this.#variance[at]! / forgetting;
  }
}
