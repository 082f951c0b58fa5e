/** One line of the sidecar's `quality-codec` command. */
export interface CodecLine {
  readonly id: string;
  readonly method: string;
  readonly raw_bytes: number;
  readonly coded_bytes: number;
  /** KL(full ‖ decoded) in nats, before each token of the full pass's answer and at its end. */
  readonly kl: readonly number[];
  readonly agreements: number;
  readonly identical: boolean;
}

export interface CodecSummary {
  readonly method: string;
  /** Raw bytes over encoded bytes. */
  readonly ratio: number;
  /** Of KV in 16 bits. */
  readonly bitsPerValue: number;
  readonly places: number;
  readonly klMean: number;
  /** Of the mean, over questions. */
  readonly klStandardError: number;
  readonly klP99: number;
  /** Shares, 0 to 1. */
  readonly agreement: number;
  readonly identical: number;
}

/** Each method over all questions, in the order of the lines. Places weigh alike. */
export function summarizeCodec(lines: readonly CodecLine[]): readonly CodecSummary[] {
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  return [...new Set(lines.map((line) => line.method))].map((method) => {
    const own = lines.filter((line) => line.method === method);
    const kl = own.flatMap((line) => line.kl).sort((a, b) => a - b);
    const klMean = sum(kl) / kl.length;
    // Places of one question depend on each other: the error of the mean is taken over questions.
    const offsets = own.map((line) => sum(line.kl) - klMean * line.kl.length);
    const ratio = sum(own.map((line) => line.raw_bytes)) / sum(own.map((line) => line.coded_bytes));
    return {
      method,
      ratio,
      bitsPerValue: 16 / ratio,
      places: kl.length,
      klMean,
      klStandardError: Math.sqrt(sum(offsets.map((offset) => offset * offset))) / kl.length,
      klP99: kl[Math.max(0, Math.ceil(kl.length * 0.99) - 1)] ?? Number.NaN,
      agreement: sum(own.map((line) => line.agreements)) / kl.length,
      identical: own.filter((line) => line.identical).length / own.length,
    };
  });
}

/** The best ratio that a family of methods was measured to reach at a divergence or below. */
export function ratioWithin(family: readonly CodecSummary[], kl: number): number | undefined {
  const ratios = family.filter((point) => point.klMean <= kl).map((point) => point.ratio);
  return ratios.length === 0 ? undefined : Math.max(...ratios);
}
