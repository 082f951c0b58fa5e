import { runWorker } from "@kvasir/worker";

await runWorker("prefill", ["prefill"]);
