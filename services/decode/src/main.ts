import { runWorker } from "@kvasir/worker";

await runWorker("decode", ["decode", "mixed"]);
