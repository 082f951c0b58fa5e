import type { ChatTokenizer, ModelFacts } from "@kvasir/tokenizer";
import type { Question } from "./question.ts";

/** A question as the sidecar's `quality` command reads it: token ids, each document by itself. */
export interface Item {
  readonly id: string;
  readonly prefix: readonly number[];
  readonly documents: readonly (readonly number[])[];
  readonly suffix: readonly number[];
  readonly max_tokens: number;
  readonly stop_token_ids: readonly number[];
}

const BREAK = "\n\n";

/**
 * The prompt that the gateway would make of the question and its documents, cut at the documents' borders. Each part is tokenized by itself,
 * as a cache of documents has to: a document's tokens must not depend on its neighbours.
 */
export async function itemFrom(
  tokenizer: ChatTokenizer,
  facts: ModelFacts,
  question: Question,
  maxTokens: number,
): Promise<Item> {
  const messages = [{ role: "user" as const, content: question.question }];
  const prompt = tokenizer.renderChat(messages, { documents: question.documents });
  const parts = cut(
    prompt,
    question.documents.map((document) => document.text),
  );
  const [prefix = [], ...rest] = await Promise.all(
    parts.map((part) => tokenizer.encode(part, { addSpecialTokens: false })),
  );
  return {
    id: question.id,
    prefix,
    documents: rest.slice(0, -1),
    suffix: rest.at(-1) ?? [],
    max_tokens: maxTokens,
    stop_token_ids: facts.eosTokenIds,
  };
}

/** What comes before the documents, each of them from its heading to its last character, and what comes after. */
export function cut(prompt: string, texts: readonly string[]): string[] {
  const borders = [0];
  let from = 0;
  for (const text of texts) {
    const at = prompt.indexOf(text, from);
    if (at < 0)
      throw new Error(`the template changed a document: ${JSON.stringify(text.slice(0, 60))} is not in the prompt`);
    // A heading stands between the document and the break before it.
    if (borders.length === 1) borders.push(Math.max(0, prompt.lastIndexOf(BREAK, at)));
    from = at + text.length;
    borders.push(from);
  }
  borders.push(prompt.length);
  return borders.slice(1).map((border, index) => prompt.slice(borders[index], border));
}
