const LENGTH_MAX = 300;

/**
 * Text from a file or another program, fit for a message of one line: control characters and halves of surrogate pairs become U+FFFD, and
 * what is longer than 300 characters is cut.
 */
export function oneLine(text: string): string {
  const clean = text.replace(/[\p{Cc}\p{Zl}\p{Zp}]+/gu, "\ufffd").toWellFormed();
  return clean.length <= LENGTH_MAX ? clean : `${clean.slice(0, LENGTH_MAX).toWellFormed()}…`;
}
