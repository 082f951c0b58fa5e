import { setTimeout as sleep } from "node:timers/promises";
import type { Redis } from "ioredis";
import type { StateLog } from "./redis-connection.ts";

export interface LeadershipOptions {
  /** Life of the lease without renewal: the longest that nobody leads after a leader's death is this and one attempt. */
  readonly ttlMs?: number;
  /** Between two attempts to take or keep the lease. */
  readonly attemptMs?: number;
}

/** One process's part in the election of a leader. */
export interface Leadership {
  /** The fencing token: above those of all leaders before; 0 while another process leads. */
  readonly token: number;
  /** Gives the lease back, so that another takes it at once. */
  close(): Promise<void>;
}

/**
 * Keeps the lease if it is ours, takes it if it is nobody's, under a token that grows with each leader and never falls below the time in
 * milliseconds: a Redis that lost its memory must not hand out one that was used.
 */
const TAKE_OR_KEEP = `
local owner = redis.call('GET', KEYS[1])
local last = redis.call('GET', KEYS[2])
if owner == ARGV[1] and last then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return last
end
if owner and owner ~= ARGV[1] then return '0' end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local token = string.format('%.0f', math.max((tonumber(last or '0') or 0) + 1, now))
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], token)
return token`;

const GIVE_BACK = `
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`;

/**
 * Stands for election until closed. `onChange` is told each new token, 0 when another leads. While Redis does not answer nobody's part
 * changes: a leader goes on, and if another one was elected behind its back, whoever sees both tokens refuses the lower.
 */
export function lead(
  redis: Redis,
  key: string,
  ownerId: string,
  log: StateLog,
  onChange: (token: number) => void,
  { ttlMs = 1_000, attemptMs = 250 }: LeadershipOptions = {},
): Leadership {
  let token = 0;
  const closed = new AbortController();
  const stand = async (): Promise<void> => {
    while (!closed.signal.aborted) {
      try {
        const next = Number(await redis.eval(TAKE_OR_KEEP, 2, key, `${key}:token`, ownerId, ttlMs));
        if (next !== token && !closed.signal.aborted) {
          token = next;
          log.warn({ token }, next === 0 ? "another process leads now" : "this process leads now");
          onChange(next);
        }
      } catch {
        // The connection has logged the outage; the part stands.
      }
      await sleep(attemptMs, undefined, { signal: closed.signal }).catch(() => undefined);
    }
  };
  const standing = stand();
  return {
    get token() {
      return token;
    },
    close: async () => {
      closed.abort();
      if (redis.status !== "ready") return;
      await standing;
      await redis.eval(GIVE_BACK, 1, key, ownerId).catch(() => undefined);
    },
  };
}
