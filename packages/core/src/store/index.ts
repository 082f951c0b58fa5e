export { StoreDirectory } from "./store-directory.ts";
export type { StoredBlock, StoreEffect, StoreEvent, StoreLimits, StoreMedium } from "./store-event.ts";
