export type { HolderEvent, HolderEventOutcome } from "./holder-event.ts";
export { MEDIA, type Medium } from "./media.ts";
export { PREFIX_INDEX_DEFAULTS, PrefixIndex, type PrefixIndexOptions } from "./prefix-index.ts";
export { PrefixMatches } from "./prefix-matches.ts";
