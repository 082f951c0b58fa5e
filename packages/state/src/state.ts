import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { KvasirError } from "@kvasir/core";
import type { Redis } from "ioredis";
import { type Leadership, type LeadershipOptions, lead } from "./leadership.ts";
import { type PinBook, pinBook } from "./pins.ts";
import { type RecordByKind, type RecordKind, type RegisteredRecord, recordFromText } from "./records.ts";
import { connectRedis, type RedisTlsFiles, SILENT_LOG, type StateLog } from "./redis-connection.ts";

export interface StateOptions {
  readonly log?: StateLog;
  /** Life of a record without refresh. Larger: the dead are listed longer; smaller: a pause looks like death. */
  readonly recordTtlMs?: number;
  readonly refreshMs?: number;
  readonly pollMs?: number;
  /** Beside the system's authorities, and what is shown, when the URL is `rediss://`. Read at the start. */
  readonly tls?: RedisTlsFiles;
  /** How long `connectState` and `nextEpoch` try before they give up. */
  readonly connectMaxMs?: number;
}

/** A record that is kept alive. */
export interface Registration<K extends RecordKind> {
  /** Replaces what is said, at once if Redis answers, else with the next refresh. */
  update(record: RegisteredRecord<K>): Promise<void>;
  /** Stops refreshing, and removes the record unless another process has written its own since. */
  close(): Promise<void>;
}

/** What the processes of one cluster know of each other. */
export interface State {
  /** False during an outage. */
  readonly isConnected: boolean;
  /** What operators want stores to keep. */
  readonly pins: PinBook;
  /** A number above every one answered before, for the incarnation of a sidecar. Unavailable when Redis stays away. */
  nextEpoch(): Promise<number>;
  /** Says that a process is there, and keeps saying it. Rejects when the first write fails. */
  register<K extends RecordKind>(kind: K, id: string, record: RegisteredRecord<K>): Promise<Registration<K>>;
  /** Records of live processes, by id. Rejects when Redis does not answer. */
  list<K extends RecordKind>(kind: K): Promise<readonly RecordByKind[K][]>;
  /** Calls back with the list, first and after each change. During an outage the last list stands. Answers with its end. */
  watch<K extends RecordKind>(kind: K, onChange: (records: readonly RecordByKind[K][]) => void): () => void;
  /**
   * Stands for election as leader of `name` until closed, as a process of its own however often that id has stood before. `onChange` is told
   * each new fencing token, 0 when another leads. The part stands while Redis does not answer.
   */
  lead(name: string, id: string, onChange: (token: number) => void, options?: LeadershipOptions): Leadership;
  /**
   * Keeps what a leader of `name` wants the next one to know, under its fencing token. False, and nothing is kept, when a later leader has left
   * something already. It is forgotten an hour after it was left last. Rejects when Redis does not answer.
   */
  leave(name: string, token: number, text: string): Promise<boolean>;
  /** What the leaders of `name` left last; undefined: nothing. Rejects when Redis does not answer. */
  left(name: string): Promise<string | undefined>;
  close(): Promise<void>;
}

const SCAN_COUNT = 256;
const WARNED_KEY_MAX = 256;

/**
 * Epochs are counted, and never fall below the time in milliseconds: a Redis that lost its memory must not hand out a number
 * that has been used, or every worker that restarts after it would look like its own past.
 */
const NEXT_EPOCH = `
local last = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
local time = redis.call('TIME')
local epoch = math.max(last + 1, tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
redis.call('SET', KEYS[1], string.format('%.0f', epoch))
return epoch`;

const LEFT_MS = 3_600_000;
const LEAVE = `
if (tonumber(redis.call('HGET', KEYS[1], 'token') or '0') or 0) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'text', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1`;

const DELETE_IF_OURS = `
local text = redis.call('GET', KEYS[1])
if text and string.find(text, ARGV[1], 1, true) then return redis.call('DEL', KEYS[1]) end
return 0`;

/** Connects to the state of `cluster`. Rejects with one clear line when Redis cannot be reached in time. */
export async function connectState(redisUrl: string, cluster: string, options: StateOptions = {}): Promise<State> {
  if (!/^[A-Za-z0-9._-]{1,64}$/.test(cluster)) {
    throw new Error(`cluster is ${JSON.stringify(cluster)}; use 1 to 64 letters, digits, dots, dashes or underscores`);
  }
  const redis = await connectRedis(redisUrl, options.log ?? SILENT_LOG, options.connectMaxMs ?? 10_000, options.tls);
  return new RedisState(redis, `kvasir:{${cluster}}:`, options);
}

class RedisState implements State {
  readonly #redis: Redis;
  readonly #prefix: string;
  readonly #log: StateLog;
  readonly #recordTtlMs: number;
  readonly #refreshMs: number;
  readonly #pollMs: number;
  readonly #connectMaxMs: number;
  readonly #ends = new Set<() => void>();
  readonly #warnedKeys = new Set<string>();
  readonly pins: PinBook;

  constructor(redis: Redis, prefix: string, options: StateOptions) {
    this.#redis = redis;
    this.#prefix = prefix;
    this.#log = options.log ?? SILENT_LOG;
    this.#recordTtlMs = options.recordTtlMs ?? 10_000;
    this.#refreshMs = options.refreshMs ?? 3_000;
    this.#pollMs = options.pollMs ?? 1_000;
    this.#connectMaxMs = options.connectMaxMs ?? 10_000;
    const book = pinBook(redis, prefix, this.#pollMs, this.#log);
    this.pins = { ...book, watch: (onChange) => this.#untilClosed(book.watch(onChange)) };
  }

  get isConnected(): boolean {
    return this.#redis.status === "ready";
  }

  async nextEpoch(): Promise<number> {
    const giveUpAt = performance.now() + this.#connectMaxMs;
    for (;;) {
      try {
        return Number(await this.#redis.eval(NEXT_EPOCH, 1, `${this.#prefix}epoch`));
      } catch (error) {
        if (performance.now() >= giveUpAt || this.#redis.status === "end") {
          const message = `no epoch from Redis: ${(error as Error).message}; check that Redis runs`;
          throw new KvasirError({ reason: "unavailable", message, cause: error });
        }
        await delay(100);
      }
    }
  }

  async register<K extends RecordKind>(kind: K, id: string, first: RegisteredRecord<K>): Promise<Registration<K>> {
    const key = `${this.#prefix}${kind}:${id}`;
    const registrationId = randomUUID();
    let record = first;
    const write = async (): Promise<void> => {
      const text = JSON.stringify({ ...record, updatedAtUnixMs: Date.now(), registrationId });
      await this.#redis.set(key, text, "PX", this.#recordTtlMs);
    };
    try {
      await write();
    } catch (error) {
      const message = `cannot register ${kind} ${id} in Redis: ${(error as Error).message}`;
      throw new KvasirError({ reason: "unavailable", message, cause: error });
    }
    // A refresh that fails is made up for by the next: the outage itself is logged where the connection is.
    const timer = setInterval(() => void write().catch(() => undefined), this.#refreshMs);
    const stop = (): void => clearInterval(timer);
    this.#ends.add(stop);
    return {
      update: async (next) => {
        record = next;
        await write().catch(() => undefined);
      },
      close: async () => {
        stop();
        this.#ends.delete(stop);
        await this.#redis.eval(DELETE_IF_OURS, 1, key, registrationId).catch(() => undefined);
      },
    };
  }

  async list<K extends RecordKind>(kind: K): Promise<readonly RecordByKind[K][]> {
    const prefix = `${this.#prefix}${kind}:`;
    const keys = new Set<string>();
    let cursor = "0";
    do {
      const [next, batch] = await this.#redis.scan(cursor, "MATCH", `${prefix}*`, "COUNT", SCAN_COUNT);
      for (const key of batch) keys.add(key);
      cursor = next;
    } while (cursor !== "0");
    const sorted = [...keys].sort();
    const texts = sorted.length === 0 ? [] : await this.#redis.mget(sorted);
    const records: RecordByKind[K][] = [];
    for (const [index, key] of sorted.entries()) {
      const text = texts[index];
      if (text === null || text === undefined) continue; // It expired in between.
      const outcome = recordFromText(kind, key.slice(prefix.length), text);
      if (outcome.kind === "record") records.push(outcome.record);
      else this.#warnOnce(key, outcome.message);
    }
    return records;
  }

  watch<K extends RecordKind>(kind: K, onChange: (records: readonly RecordByKind[K][]) => void): () => void {
    let known: string | undefined;
    let isStopped = false;
    let timer: NodeJS.Timeout | undefined;
    const poll = async (): Promise<void> => {
      try {
        const records = await this.list(kind);
        const seen = JSON.stringify(records.map((record) => ({ ...record, updatedAtUnixMs: 0 })));
        if (!isStopped && seen !== known) {
          known = seen;
          onChange(records);
        }
      } catch {
        // The last list stands; the connection has logged the outage.
      }
      if (!isStopped) timer = setTimeout(() => void poll(), this.#pollMs);
    };
    const stop = (): void => {
      isStopped = true;
      clearTimeout(timer);
      this.#ends.delete(stop);
    };
    this.#ends.add(stop);
    void poll();
    return stop;
  }

  lead(name: string, id: string, onChange: (token: number) => void, options?: LeadershipOptions): Leadership {
    return lead(this.#redis, `${this.#prefix}leader:${name}`, `${id} ${randomUUID()}`, this.#log, onChange, options);
  }

  async leave(name: string, token: number, text: string): Promise<boolean> {
    return (await this.#redis.eval(LEAVE, 1, `${this.#prefix}left:${name}`, token, text, LEFT_MS)) === 1;
  }

  async left(name: string): Promise<string | undefined> {
    return (await this.#redis.hget(`${this.#prefix}left:${name}`, "text")) ?? undefined;
  }

  async close(): Promise<void> {
    for (const end of [...this.#ends]) end();
    this.#ends.clear();
    if (this.isConnected) await this.#redis.quit().catch(() => undefined);
    this.#redis.disconnect();
  }

  #untilClosed(end: () => void): () => void {
    const stop = (): void => {
      end();
      this.#ends.delete(stop);
    };
    this.#ends.add(stop);
    return stop;
  }

  #warnOnce(key: string, message: string): void {
    if (this.#warnedKeys.has(key)) return;
    if (this.#warnedKeys.size >= WARNED_KEY_MAX) this.#warnedKeys.clear();
    this.#warnedKeys.add(key);
    this.#log.warn({ key, error: message }, "a key in Redis is no record of this cluster and is ignored");
  }
}
