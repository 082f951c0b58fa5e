import { runMain } from "@kvasir/config";
import { STORE_FLAGS } from "./flags.ts";
import { runStore } from "./run-store.ts";

await runMain(STORE_FLAGS, runStore);
