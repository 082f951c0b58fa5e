import { compileKernels, table } from "./lib/kernels.mjs";
import { runScript } from "./lib/stop-error.mjs";

// `npm run kernels`: compiles services/sidecar/kernels/*.cu into .cache/kernels and tells registers and spills of each kernel. Exit code 1
// when a kernel that runs in every step spills registers.
await runScript(async () => {
  const { kernels, spilling } = await compileKernels((line) => process.stdout.write(`${line}\n`));
  process.stdout.write(table(kernels));
  if (spilling.length === 0) return 0;
  process.stdout.write(`spilled registers: ${spilling.join(", ")}\n`);
  return 1;
});
