import { readFileSync } from "node:fs";
import { type ConnectionOptions, rootCertificates } from "node:tls";
import { Redis } from "ioredis";

/** Where this package says what happens to it; pino fits. */
export interface StateLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

/** Paths of PEM files. */
export interface RedisTlsFiles {
  readonly ca: string | undefined;
  readonly cert: string | undefined;
  readonly key: string | undefined;
}

export const SILENT_LOG: StateLog = { info: () => undefined, warn: () => undefined };

/** Longest wait for one answer. Larger: a frozen Redis blocks longer; smaller: a slow disk looks like an outage. */
const COMMAND_MAX_MS = 2_000;
const RECONNECT_MAX_MS = 1_000;

/**
 * A connection that fails fast while Redis is away and comes back by itself. Nothing is queued over an outage: whoever called
 * decides whether to try again, with what is true then. One log line says that Redis went away, one that it came back.
 */
export async function connectRedis(
  redisUrl: string,
  log: StateLog,
  connectMaxMs: number,
  tls?: RedisTlsFiles,
): Promise<Redis> {
  const shown = withoutPassword(redisUrl);
  const redis = new Redis(redisUrl, {
    lazyConnect: true,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    commandTimeout: COMMAND_MAX_MS,
    connectTimeout: COMMAND_MAX_MS,
    ...(redisUrl.startsWith("rediss:") ? { tls: tlsOptions(tls) } : {}),
    retryStrategy: (attempt) => Math.min(50 * attempt, RECONNECT_MAX_MS),
  });
  let lastError = "no answer";
  let isReady = false;
  let isOutageLogged = false;
  redis.on("error", (error: Error) => {
    lastError = error.message || (error as NodeJS.ErrnoException).code || error.name;
  });
  redis.on("close", () => {
    if (!isReady || isOutageLogged) return;
    isOutageLogged = true;
    log.warn({ redis: shown, error: lastError }, "Redis is away; what was known of the cluster is kept");
  });
  redis.on("ready", () => {
    isReady = true;
    if (isOutageLogged) log.info({ redis: shown }, "Redis is back");
    isOutageLogged = false;
  });

  redis.connect().catch(() => undefined);
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => {
      redis.disconnect();
      reject(new Error(`cannot reach Redis at ${shown}: ${lastError}; start it or set --redis-url`));
    }, connectMaxMs);
    redis.once("ready", () => {
      clearTimeout(timer);
      resolve();
    });
  });
  return redis;
}

/** Redis is checked by its host name, as it is everywhere. */
function tlsOptions(files: RedisTlsFiles | undefined): ConnectionOptions {
  const read = (path: string | undefined) => (path === undefined ? undefined : readFileSync(path));
  const [ca, cert, key] = [read(files?.ca), read(files?.cert), read(files?.key)];
  return { ...(ca ? { ca: [...rootCertificates, ca] } : {}), ...(cert && key ? { cert, key } : {}) };
}

export function withoutPassword(redisUrl: string): string {
  try {
    const url = new URL(redisUrl);
    if (url.password !== "") url.password = "***";
    return url.href;
  } catch {
    return "an unreadable URL";
  }
}
