import { runMain } from "@kvasir/config";
import { ROUTER_FLAGS } from "./flags.ts";
import { runRouter } from "./run-router.ts";

await runMain(ROUTER_FLAGS, runRouter);
