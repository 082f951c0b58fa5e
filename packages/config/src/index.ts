export { MEMBER_OPTIONS } from "./member-options.ts";
export { nearestName } from "./nearest-name.ts";
export type { OptionSpec, OptionSpecs, OptionType, OptionValues } from "./option-spec.ts";
export { defineOptions, type Options, type ParseOutcome } from "./options.ts";
export { bytesFromText } from "./parse-value.ts";
export { announceReady, type EndReason, waitForEnd } from "./process-end.ts";
export { runMain } from "./run-main.ts";
export { TLS_OPTIONS, tlsFilesFrom } from "./tls-options.ts";
