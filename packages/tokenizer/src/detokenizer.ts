/** Turns tokens into text as they come. Pieces never end within a character; their sum is the decoding of all tokens at once. */
export interface Detokenizer {
  push(tokenIds: Iterable<number>): string;
  /** What was held back: an incomplete character becomes U+FFFD. */
  flush(): string;
}

/** A vocabulary whose tokens are byte strings, indexed by id; undefined for special tokens, which have no text. */
export type TokenBytes = readonly (Uint8Array | undefined)[];

/** For byte-level vocabularies: bytes go through a streaming UTF-8 decoder, a table look-up per token. */
export function createByteDetokenizer(tokenBytes: TokenBytes): Detokenizer {
  // A byte order mark is text like any other: the whole decode keeps it too.
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return {
    push(tokenIds) {
      let text = "";
      for (const id of tokenIds) {
        const bytes = tokenBytes[id];
        if (bytes !== undefined) text += decoder.decode(bytes, { stream: true });
      }
      return text;
    },
    flush: () => decoder.decode(),
  };
}

/** Decodes a list of tokens to text; special ones are left out by the caller. */
export type DecodeTokens = (tokens: string[]) => string;

/** Tokens kept before the new ones, enough for any decoder's context (a leading space, a byte sequence). */
const CONTEXT_TOKENS = 6;

/**
 * For any decoder: the text of a window of tokens with and without the new ones; the difference is new, unless it ends in the middle of a
 * character. The window restarts after each piece, so the cost per token does not grow.
 */
export function createWindowDetokenizer(textOf: (id: number) => string | undefined, decode: DecodeTokens): Detokenizer {
  let window: string[] = [];
  let read = 0;
  function take(final: boolean): string {
    const before = decode(window.slice(0, read));
    const all = decode(window);
    if (all.length <= before.length || (!final && all.endsWith("\ufffd"))) return "";
    const piece = all.slice(before.length);
    window = window.slice(Math.max(0, Math.min(read, window.length - CONTEXT_TOKENS)));
    read = window.length;
    return piece;
  }
  return {
    push(tokenIds) {
      let text = "";
      for (const id of tokenIds) {
        const token = textOf(id);
        if (token === undefined) continue;
        window.push(token);
        text += take(false);
      }
      return text;
    },
    flush: () => take(true),
  };
}
