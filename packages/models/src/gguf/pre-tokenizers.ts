/** How a byte-level BPE vocabulary cuts text before merging. */
export interface PreTokenizer {
  readonly preTokenizer: object;
  readonly normalizer: object | null;
  /** A piece that is a token as a whole is taken as it is. */
  readonly ignoreMerges: boolean;
  /** Texts begin with the begin token when the file does not say. */
  readonly addsBeginToken: boolean;
}

const LLAMA3_SPLIT =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const QWEN2_SPLIT = LLAMA3_SPLIT.replace("\\p{N}{1,3}", "\\p{N}");
const TEKKEN_SPLIT =
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|" +
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|" +
  "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const GPT2: PreTokenizer = plain(byteLevel(true));
const LLAMA3: PreTokenizer = { ...plain(splitBy(LLAMA3_SPLIT)), ignoreMerges: true, addsBeginToken: true };
const QWEN2: PreTokenizer = { ...plain(splitBy(QWEN2_SPLIT)), normalizer: { type: "NFC" } };

/** By llama.cpp's names, written as Hugging Face's tokenizers write them. */
export const PRE_TOKENIZERS: Readonly<Record<string, PreTokenizer>> = {
  default: GPT2,
  "gpt-2": GPT2,
  smollm: plain(sequence({ type: "Digits", individual_digits: true }, byteLevel(true))),
  "llama-bpe": LLAMA3,
  llama3: LLAMA3,
  "llama-v3": LLAMA3,
  "smaug-bpe": plain(splitBy(LLAMA3_SPLIT)),
  dbrx: plain(splitBy(LLAMA3_SPLIT)),
  qwen2: QWEN2,
  "deepseek-r1-qwen": QWEN2,
  tekken: { ...plain(splitBy(TEKKEN_SPLIT)), ignoreMerges: true, addsBeginToken: true },
};

export function byteLevel(useRegex: boolean): object {
  return { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: useRegex };
}

function plain(preTokenizer: object): PreTokenizer {
  return { preTokenizer, normalizer: null, ignoreMerges: false, addsBeginToken: false };
}

function splitBy(pattern: string): object {
  return sequence(
    { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false },
    byteLevel(false),
  );
}

function sequence(...pretokenizers: object[]): object {
  return { type: "Sequence", pretokenizers };
}
