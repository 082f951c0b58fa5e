import { Template } from "@huggingface/jinja";
import { KvasirError, oneLine } from "@kvasir/core";

export interface ChatMessage {
  readonly role: string;
  readonly content: string;
  readonly name?: string;
}

export interface ChatDocument {
  readonly title?: string;
  readonly text: string;
}

export interface RenderOptions {
  readonly documents?: readonly ChatDocument[];
  /** Ends the text where the assistant begins to speak. Default true. */
  readonly addGenerationPrompt?: boolean;
}

export interface ChatTemplate {
  /** Fails with `invalid_request` naming `messages` when the template refuses them. */
  render(messages: readonly ChatMessage[], options?: RenderOptions): string;
}

/** A model's own template, with the special tokens that it may name. */
export function compileChatTemplate(source: string, specialTokens: Readonly<Record<string, string>>): ChatTemplate {
  let template: Template;
  try {
    template = new Template(source);
  } catch (error) {
    throw new KvasirError({
      reason: "invalid_request",
      field: "model",
      message: `the model's chat template cannot be read: ${text(error)}`,
      cause: error,
    });
  }
  const takesDocuments = /\bdocuments\b/.test(source);
  return {
    render(messages, { documents = [], addGenerationPrompt = true } = {}) {
      const placed = documents.length > 0 && !takesDocuments ? placeDocuments(messages, documents) : messages;
      try {
        return template.render({
          ...specialTokens,
          messages: placed,
          add_generation_prompt: addGenerationPrompt,
          ...(takesDocuments && documents.length > 0 ? { documents } : {}),
        });
      } catch (error) {
        throw new KvasirError({
          reason: "invalid_request",
          field: "messages",
          message: `the model's chat template refuses these messages: ${text(error)}`,
          cause: error,
        });
      }
    },
  };
}

/** What introduces the documents when the model's template has no place for them. */
const DOCUMENTS_INTRODUCTION = "Use these documents to answer.";

/**
 * For templates that know no documents: each becomes `Document N: title` and its text, in order, in the system message, after what the
 * caller's system message says. See docs/documents.md.
 */
export function placeDocuments(
  messages: readonly ChatMessage[],
  documents: readonly ChatDocument[],
): readonly ChatMessage[] {
  const rendered = documents.map((document, index) => {
    const title = document.title === undefined || document.title === "" ? "" : ` ${document.title}`;
    return `Document ${index + 1}:${title}\n${document.text}`;
  });
  const [first, ...rest] = messages;
  const own = first?.role === "system";
  const content = [own ? first.content : DOCUMENTS_INTRODUCTION, ...rendered].join("\n\n");
  return [{ role: "system", content }, ...(own ? rest : messages)];
}

function text(error: unknown): string {
  return oneLine(error instanceof Error ? error.message : String(error));
}
