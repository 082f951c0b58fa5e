/** Tokens [begin, end) of a prompt. */
export interface TokenSpan {
  readonly begin: number;
  readonly end: number;
}
