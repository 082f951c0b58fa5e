export { importGguf } from "./gguf/import-gguf.ts";
export { readGgufMetadata } from "./gguf/read-metadata.ts";
export { KNOWN_MODELS, type ResolvedModel, resolveModel } from "./resolve-model.ts";
export { ensureSmollm2, type Progress } from "./smollm2.ts";
export { ensureTinyModel } from "./tiny/tiny-model.ts";
