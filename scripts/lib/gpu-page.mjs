/** Parts of a run by name: `{ code, seconds, text, error }`, from the file that scripts/gpu-run.sh writes. */
export function partsOf(results) {
  const parts = new Map();
  for (const section of results.split(/^=== /m).slice(1)) {
    const [head, ...lines] = section.split("\n");
    const [, name, code, seconds] = /^(\S+) code (\d+) seconds (\d+)/.exec(head) ?? [];
    if (name === undefined) continue;
    const at = lines.indexOf("--- stderr");
    const [text, error] = at < 0 ? [lines, []] : [lines.slice(0, at), lines.slice(at + 1)];
    const joined = (part) => part.join("\n").trim();
    parts.set(name, { code: Number(code), seconds: Number(seconds), text: joined(text), error: joined(error) });
  }
  return parts;
}

/** The page of results of a run. */
export function page(results) {
  const parts = partsOf(results);
  const part = (name) => parts.get(name) ?? { code: 1, seconds: 0, text: "", error: "it was not run" };
  const told = (name) => {
    const { code, text, error } = part(name);
    const why = error.split("\n").findLast((line) => line !== "") ?? "it said nothing";
    return code === 0 ? text : `${text}\n\nEnded with code ${code}: ${why}`.trim();
  };
  const { text: checked } = part("check");
  const lines = checked.split("\n");
  const passed = lines.filter((line) => line.startsWith("ok "));
  const failed = lines.filter((line) => line.startsWith("FAILED"));
  const remarks = passed.filter((line) => line.includes(": ")).map((line) => line.replace(/^ok +/, ""));
  const sanitizer = [...parts.keys()].filter((name) => name.startsWith("sanitizer"));
  const seconds = [...parts.values()].reduce((sum, { seconds }) => sum + seconds, 0);
  return `# On a GPU

\`sh scripts/gpu-run.sh\`, ${seconds} s in all. ${`${part("facts").text}\n${part("after").text}`.trim().replaceAll("\n", ". ")}.

## The same answers

The conformance suite, and models of random weights beside the CPU engine in bf16 and beside themselves in a batch: ${passed.length} cases agree,
${failed.length} do not.

${[...failed, ...remarks].map((line) => `- ${line}`).join("\n")}
${part("check").code === 0 || failed.length > 0 ? "" : `\n${told("check")}\n`}
${sanitizer.length === 0 ? "compute-sanitizer was not there." : sanitizer.map((name) => `${name.replace("-", ", ")}: ${told(name).split("\n").at(-1)}`).join("\n\n")}

## Kernels and whole models

Kernels: medians of 15 device-timed runs; the ceiling of a kernel is the larger of its bytes at the copy's rate and its operations at the product's
rate, both measured in the same run. Shapes are Llama-3-8B's. Whole models: wall time of steps with graphs and one step always in flight; for
their ceiling weights and KV count, each read once, or the operations of the products and of attention. "deterministic" is \`--deterministic\`.

${told("bench")}

## transformers in the same run

${told("baseline")}
${comparison(part("bench").text, part("baseline").text)}
## Two sidecars on one GPU

A prompt's KV from sidecar to sidecar over gRPC and loopback: while it is computed, and once more when all is there.

${told("cluster")}

## A whole cluster on one GPU

Gateway, router, one prefill and one decode worker, each with its sidecar on the same GPU, and a client, all on one machine. Llama-3-8B's shape with
random weights and a vocabulary of 49,152.

${told("gateway")}
`;
}

/** How much faster than the baseline, for the lines that both have. */
function comparison(own, baseline) {
  const rows = (text) =>
    new Map([...text.matchAll(/^\| ([^|]+?) \| ([\d.]+) \|/gm)].map(([, name, ms]) => [name, Number(ms)]));
  const theirs = rows(baseline);
  const lines = [...rows(own)].filter(([name]) => theirs.has(name));
  if (lines.length === 0) return "";
  const ratio = ([name, ms]) => `- ${name}: ${(theirs.get(name) / ms).toFixed(2)} times as fast`;
  return `\nBeside them:\n\n${lines.map(ratio).join("\n")}\n`;
}
