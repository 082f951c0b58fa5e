import { runGpu } from "./lib/gpu.mjs";
import { runScript } from "./lib/stop-error.mjs";

// `npm run gpu -- pack`: what a GPU machine needs, into one folder. `npm run gpu -- check|bench|all`: the kernels' conformance suite and
// speed on this machine's GPU; `bench` and `all` write docs/results/gpu.md. Works on a machine without Rust, nvcc and a network when `pack`
// ran before and its folder came along; needs Node and the driver alone.
await runScript(async () => runGpu(process.argv.slice(2), (line) => process.stdout.write(`${line}\n`)));
