import { type CodecSummary, ratioWithin } from "./codec-summary.ts";

/** Methods of others, and ours by what they cost; the rest are the profile's own names. */
export function familyOf(method: string): "exact" | "uniform" | "CacheGen" | "fast" | "dense" {
  if (method === "raw" || method === "lossless") return "exact";
  if (method.startsWith("uniform")) return "uniform";
  if (method.startsWith("cachegen")) return "CacheGen";
  return method.startsWith("fast") ? "fast" : "dense";
}

/** The report as Markdown. */
export function codecPage(about: Readonly<Record<string, unknown>>, summaries: readonly CodecSummary[]): string {
  const facts = Object.entries(about).map(([name, value]) => `${name} ${value}`);
  const share = (value: number) => `${(100 * value).toFixed(1)} %`;
  const rows = summaries.map((one) => [
    one.method,
    one.bitsPerValue.toFixed(2),
    `${one.ratio.toFixed(2)}×`,
    `${one.klMean.toFixed(4)} ± ${one.klStandardError.toFixed(4)}`,
    one.klP99.toFixed(3),
    share(one.agreement),
    share(one.identical),
  ]);
  const header = [
    "method",
    "bits a value",
    "of bf16",
    "KL mean",
    "KL p99",
    "next token agrees",
    "whole answer the same",
  ];
  const table = [header, header.map(() => "---"), ...rows].map((cells) => `| ${cells.join(" | ")} |`).join("\n");
  const dense = summaries.filter(({ method }) => familyOf(method) === "dense");
  const beside = summaries
    .filter(({ method }) => familyOf(method) === "CacheGen")
    .flatMap(({ method, klMean, ratio }) => {
      const ours = ratioWithin(dense, klMean);
      return ours === undefined
        ? []
        : [
            `| ${method} | ${klMean.toFixed(4)} | ${ratio.toFixed(2)}× | ${ours.toFixed(2)}× | ${(ours / ratio).toFixed(2)} |`,
          ];
    });
  const goals = [0.01, 0.035].flatMap((kl) => {
    const ours = ratioWithin(dense, kl);
    return ours === undefined ? [] : [`${ours.toFixed(2)}× within KL ${kl}`];
  });
  return `# What encoded KV costs in answers

\`npm run quality -- codec\`, ${facts.join(", ")}. HotpotQA, six passages a question; the profile was made from other documents. KV in bf16,
matrices in f32 so that nothing else moves the answers. Bytes are all bytes: headers, checksums, exceptions, coder states. What is measured and how:
[quality.md](../quality.md).

${table}

\`uniform-N\`: N bits and one scale for each token, layer, K and V (LMCache's naive serialisation). \`cachegen-F\`: CacheGen's scheme, bins F times as
wide (anchors of ten tokens in 8 bits, differences, arithmetic coding by (layer, channel) with tables made offline from MuSiQue).

![Bits and divergence](codec.svg)

Dense levels as measured: ${goals.join(", ")}. Beside CacheGen's scheme, the best dense level that errs no more:

| beside | its KL | CacheGen | dense | smaller by |
| --- | --- | --- | --- | --- |
${beside.join("\n")}
`;
}
