export { type LoadAction, PrefixLoad, type PrefixLoadFacts } from "./prefix-load.ts";
export type { TokenSpan } from "./token-span.ts";
