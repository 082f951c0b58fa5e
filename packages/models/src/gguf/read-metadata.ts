import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { basename } from "node:path";
import { KvasirError, oneLine } from "@kvasir/core";

export type GgufValue = number | bigint | boolean | string | readonly GgufValue[];
export type GgufMetadata = ReadonlyMap<string, GgufValue>;

const STRING_BYTES_MAX = 16 * 1024 * 1024;
const ARRAY_DEPTH_MAX = 4;
const READ_BYTES = 1024 * 1024;
/** Bytes of the fixed-size value types, by type number. */
const FIXED_BYTES: Readonly<Record<number, number>> = {
  0: 1,
  1: 1,
  2: 2,
  3: 2,
  4: 4,
  5: 4,
  6: 4,
  7: 1,
  10: 8,
  11: 8,
  12: 8,
};

/**
 * The key-value metadata of a GGUF file (versions 2 and 3, little endian); the weights are not touched. Counts are checked against the
 * file's length before anything is allocated for them. Fails with one line that names file, key and expectation.
 */
export function readGgufMetadata(path: string): GgufMetadata {
  const name = basename(path);
  let file: number;
  try {
    file = openSync(path, "r");
  } catch (error) {
    throw wrong(`${path} cannot be read: ${error instanceof Error ? error.message : String(error)}`);
  }
  try {
    const reader = new Reader(name, file, fstatSync(file).size);
    if (reader.bytes(4).toString("latin1") !== "GGUF")
      throw wrong(`${name} does not begin with GGUF; give a GGUF file`);
    const version = reader.u32();
    if (version < 2 || version > 3) throw wrong(`${name} is GGUF version ${version}; versions 2 and 3 are read`);
    reader.u64();
    const pairCount = reader.u64();
    reader.checkCount(pairCount, 13, "metadata pairs");
    const metadata = new Map<string, GgufValue>();
    for (let i = 0; i < pairCount; i++) {
      const key = reader.text("a metadata key");
      metadata.set(key, reader.value(reader.u32(), key, 0));
    }
    return metadata;
  } finally {
    closeSync(file);
  }
}

class Reader {
  readonly #name: string;
  readonly #file: number;
  readonly #size: number;
  #window: Buffer = Buffer.alloc(0);
  #windowBegin = 0;
  #at = 0;

  constructor(name: string, file: number, size: number) {
    this.#name = name;
    this.#file = file;
    this.#size = size;
  }

  bytes(count: number): Buffer {
    if (this.#at + count > this.#size) {
      throw wrong(`${this.#name} ends at byte ${this.#size} within its header; it is truncated or damaged`);
    }
    const offset = this.#at - this.#windowBegin;
    if (offset + count > this.#window.length) {
      const length = Math.min(Math.max(count, READ_BYTES), this.#size - this.#at);
      this.#window = Buffer.alloc(length);
      this.#windowBegin = this.#at;
      readSync(this.#file, this.#window, 0, length, this.#at);
    }
    const begin = this.#at - this.#windowBegin;
    this.#at += count;
    return this.#window.subarray(begin, begin + count);
  }

  u32(): number {
    return this.bytes(4).readUInt32LE();
  }

  u64(): number {
    const value = this.bytes(8).readBigUInt64LE();
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw wrong(`${this.#name} holds a count of ${value}; it is damaged`);
    return Number(value);
  }

  checkCount(count: number, bytesEach: number, what: string): void {
    const left = this.#size - this.#at;
    if (count * bytesEach > left) throw wrong(`${this.#name} claims ${count} ${what} in ${left} bytes; it is damaged`);
  }

  text(what: string): string {
    const length = this.u64();
    if (length > STRING_BYTES_MAX)
      throw wrong(`${this.#name}: ${what} has ${length} bytes; at most ${STRING_BYTES_MAX}`);
    return this.bytes(length).toString("utf8");
  }

  value(type: number, key: string, depth: number): GgufValue {
    switch (type) {
      case 0:
        return this.bytes(1).readUInt8();
      case 1:
        return this.bytes(1).readInt8();
      case 2:
        return this.bytes(2).readUInt16LE();
      case 3:
        return this.bytes(2).readInt16LE();
      case 4:
        return this.u32();
      case 5:
        return this.bytes(4).readInt32LE();
      case 6:
        return this.bytes(4).readFloatLE();
      case 7:
        return this.bytes(1).readUInt8() !== 0;
      case 8:
        return this.text(key);
      case 9: {
        if (depth >= ARRAY_DEPTH_MAX) throw wrong(`${this.#name}: ${key} nests arrays deeper than ${ARRAY_DEPTH_MAX}`);
        const elementType = this.u32();
        const count = this.u64();
        this.checkCount(count, FIXED_BYTES[elementType] ?? 8, `values of ${key}`);
        return Array.from({ length: count }, () => this.value(elementType, key, depth + 1));
      }
      case 10:
        return this.bytes(8).readBigUInt64LE();
      case 11:
        return this.bytes(8).readBigInt64LE();
      case 12:
        return this.bytes(8).readDoubleLE();
      default:
        throw wrong(`${this.#name}: ${key} has value type ${type}; 0 to 12 are known`);
    }
  }
}

function wrong(message: string): KvasirError {
  return new KvasirError({ reason: "invalid_request", field: "model", message: oneLine(message) });
}
