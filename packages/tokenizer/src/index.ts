export { BYTE_TO_CHARACTER, bytesFromToken, charactersFromText } from "./byte-level.ts";
export {
  type ChatDocument,
  type ChatMessage,
  type ChatTemplate,
  compileChatTemplate,
  placeDocuments,
  type RenderOptions,
} from "./chat-template.ts";
export { type ChatTokenizer, loadTokenizer } from "./chat-tokenizer.ts";
export { createByteDetokenizer, createWindowDetokenizer, type Detokenizer, type TokenBytes } from "./detokenizer.ts";
export { loadModelFacts, type ModelFacts } from "./model-facts.ts";
export { readModelJson } from "./model-file.ts";
export { createStopMatcher, type StopMatcher, type StopResult } from "./stop-matcher.ts";
