import type { Redis } from "ioredis";
import { z } from "zod";
import type { StateLog } from "./redis-connection.ts";

/** Pins of one cluster: each is read by every store whenever one changes. */
export const PIN_MAX = 256;

const hexOf = (bytes: number) => z.string().regex(new RegExp(`^[0-9a-f]{${2 * bytes}}$`));

const pinRecord = z.object({
  pinId: z.string().regex(/^[0-9a-f]{16}$/),
  /** Served model name. */
  model: z.string().max(256),
  tenantScope: hexOf(16),
  promptTokenCount: z.int().positive(),
  /** Of the prompt's full blocks, in each layout that the cluster had. */
  layouts: z.array(z.object({ exactFingerprint: z.string(), blockSize: z.int().positive(), hashesBase64: z.string() })),
  createdAtUnixMs: z.number(),
  /** 0: never. */
  expiresAtUnixMs: z.number(),
});

/** A prompt whose blocks stores shall keep. */
export type PinRecord = Readonly<z.infer<typeof pinRecord>>;

/** What operators want stores to keep. Redis owns it: stores that start, or start again, read it there. */
export interface PinBook {
  /** Replaces the pin of that id. `full`: there are `PIN_MAX` others. Rejects when Redis does not answer. */
  put(pin: PinRecord): Promise<"put" | "full">;
  /** Whether there was one. Rejects when Redis does not answer. */
  remove(pinId: string): Promise<boolean>;
  /** Those that have not ended, oldest first. Rejects when Redis does not answer. */
  list(): Promise<readonly PinRecord[]>;
  /** Calls back with the list, first and after each change, ends by time not among them. During an outage the last list stands. Answers with its end. */
  watch(onChange: (pins: readonly PinRecord[]) => void): () => void;
}

const PUT = `
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('INCR', KEYS[2])
return 1`;

const REMOVE = `
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('INCR', KEYS[2])
return 1`;

export function pinBook(redis: Redis, prefix: string, pollMs: number, log: StateLog): PinBook {
  const [key, versionKey] = [`${prefix}pins`, `${prefix}pins:version`];
  const remove = async (pinId: string) => (await redis.eval(REMOVE, 2, key, versionKey, pinId)) === 1;
  const read = async (): Promise<readonly PinRecord[]> => {
    const found = Object.entries(await redis.hgetall(key)).flatMap(([pinId, text]) => {
      const pin = pinFromText(text);
      if (pin?.pinId === pinId) return [pin];
      log.warn({ key, pinId }, "a field of this key in Redis is no pin and is ignored");
      return [];
    });
    return found.sort((a, b) => a.createdAtUnixMs - b.createdAtUnixMs || (a.pinId < b.pinId ? -1 : 1));
  };
  return {
    async put(pin) {
      const ended = (await read()).filter(({ expiresAtUnixMs: at }) => at !== 0 && at <= Date.now());
      for (const { pinId } of ended) await remove(pinId);
      const done = await redis.eval(PUT, 2, key, versionKey, pin.pinId, JSON.stringify(pin), PIN_MAX);
      return done === 1 ? "put" : "full";
    },
    remove,
    async list() {
      return (await read()).filter(({ expiresAtUnixMs: at }) => at === 0 || at > Date.now());
    },
    watch(onChange) {
      let known: string | null | undefined;
      let isStopped = false;
      let timer: NodeJS.Timeout | undefined;
      const poll = async (): Promise<void> => {
        try {
          const version = await redis.get(versionKey);
          if (version !== known) {
            const pins = await read();
            known = version;
            if (!isStopped) onChange(pins);
          }
        } catch {
          // The last list stands; the connection has logged the outage.
        }
        if (!isStopped) timer = setTimeout(() => void poll(), pollMs);
      };
      void poll();
      return () => {
        isStopped = true;
        clearTimeout(timer);
      };
    },
  };
}

function pinFromText(text: string): PinRecord | undefined {
  try {
    return pinRecord.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}
