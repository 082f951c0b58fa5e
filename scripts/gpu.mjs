import { runGpu } from "./lib/gpu.mjs";
import { runScript } from "./lib/stop-error.mjs";

// `npm run gpu -- pack`: what a GPU machine needs, into .cache/gpu. `npm run gpu -- all` (scripts/gpu-run.sh): conformance suite, speed of kernels
// and of whole models, transformers, two sidecars and a cluster, on this machine's GPU, written to docs/results/gpu.md. Where there is nothing but a
// driver: `sh scripts/gpu-run.sh FOLDER` there and `npm run gpu -- page FOLDER` here. `simulate` tries all of it on a simulated GPU.
await runScript(async () => runGpu(process.argv.slice(2), (line) => process.stdout.write(`${line}\n`)));
