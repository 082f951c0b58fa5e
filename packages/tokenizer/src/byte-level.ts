/**
 * The byte alphabet of byte-level BPE: each byte has one printable character. Bytes that print stand for themselves, the others for the
 * characters from U+0100 on, in order (Radford et al., GPT-2, 2019).
 */
export const BYTE_TO_CHARACTER: readonly string[] = alphabet();

const CHARACTER_TO_BYTE = new Map(BYTE_TO_CHARACTER.map((character, byte) => [character, byte]));

function alphabet(): string[] {
  const printable = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
}

/** The bytes that a token of a byte-level vocabulary stands for. One with a foreign character is plain text. */
export function bytesFromToken(token: string): Uint8Array {
  const bytes: number[] = [];
  for (const character of token) {
    const byte = CHARACTER_TO_BYTE.get(character);
    if (byte === undefined) return new TextEncoder().encode(token);
    bytes.push(byte);
  }
  return Uint8Array.from(bytes);
}

/** The bytes of a SentencePiece token: `<0x0A>` is a byte, U+2581 a space. */
export function bytesFromPiece(piece: string): Uint8Array {
  const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(piece)?.[1];
  if (byte !== undefined) return Uint8Array.of(Number.parseInt(byte, 16));
  return new TextEncoder().encode(piece.replaceAll("\u2581", " "));
}

/** Text in the byte alphabet. */
export function charactersFromText(text: string): string {
  return Array.from(new TextEncoder().encode(text), (byte) => BYTE_TO_CHARACTER[byte]).join("");
}
