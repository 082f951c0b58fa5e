import type { ChatTokenizer, ModelFacts } from "@kvasir/tokenizer";
import type { Document } from "./read-documents.ts";

const DOCUMENTS_EACH = 6;
/** Tokens at a prompt's end that are computed over the KV that is looked at. */
const SUFFIX_TOKENS = 16;
const ANSWER_TOKENS = 16;

/** A prompt as the sidecar's `codec-profile` command reads it. */
export interface TrainingItem {
  readonly id: string;
  readonly prefix: readonly number[];
  readonly documents: readonly (readonly number[])[];
  readonly suffix: readonly number[];
  readonly max_tokens: number;
  readonly stop_token_ids: readonly number[];
}

/** Prompts over documents, as the gateway would make them; documents are taken from all over the list. */
export async function trainingItems(
  tokenizer: ChatTokenizer,
  facts: ModelFacts,
  documents: readonly Document[],
  count: number,
): Promise<readonly TrainingItem[]> {
  if (documents.length < count * DOCUMENTS_EACH) {
    throw new Error(
      `${documents.length} documents; ${count} prompts take ${count * DOCUMENTS_EACH}: give more documents, or fewer --prompts`,
    );
  }
  const stride = Math.floor(documents.length / (count * DOCUMENTS_EACH));
  return Promise.all(
    Array.from({ length: count }, async (_, index) => {
      const own = Array.from(
        { length: DOCUMENTS_EACH },
        (_, i) => documents[(index * DOCUMENTS_EACH + i) * stride] as Document,
      );
      const messages = [{ role: "user" as const, content: "What do these documents have in common?" }];
      const prompt = tokenizer.renderChat(messages, { documents: own });
      const tokens = await tokenizer.encode(prompt, { addSpecialTokens: false });
      return {
        id: `prompt-${index}`,
        prefix: tokens.slice(0, -SUFFIX_TOKENS),
        documents: [],
        suffix: tokens.slice(-SUFFIX_TOKENS),
        max_tokens: ANSWER_TOKENS,
        stop_token_ids: facts.eosTokenIds,
      };
    }),
  );
}
