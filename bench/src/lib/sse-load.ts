import { Agent, request } from "node:http";

export interface StreamTimes {
  /** Arrival to first content event. */
  readonly ttftMs: number;
  /** Arrival to the end of the body. */
  readonly totalMs: number;
  /** Content events seen. */
  readonly events: number;
}

/** What only a stream of events tells. */
export interface SseTimes extends StreamTimes {
  /** Longest and mean time between two arrivals of events; NaN with fewer than two. */
  readonly gapMaxMs: number;
  readonly gapMeanMs: number;
  /** Of the answer's header `x-kvasir-trace-id`; empty when it has none. */
  readonly traceId: string;
}

export interface LoadResult<Times extends StreamTimes = StreamTimes> {
  readonly streams: readonly Times[];
  readonly wallMs: number;
}

/** One streaming POST; counts `data:` events by bytes without parsing them, so that the client stays cheap. */
export function streamOnce(url: URL, body: string, agent: Agent): Promise<SseTimes> {
  return new Promise((resolve, reject) => {
    const start = performance.now();
    let first = Number.NaN;
    let events = 0;
    let last = Number.NaN;
    let gaps = 0;
    let gapMaxMs = Number.NaN;
    const call = request(
      url,
      {
        method: "POST",
        agent,
        headers: { "content-type": "application/json", "content-length": Buffer.byteLength(body) },
      },
      (response) => {
        if (response.statusCode !== 200) {
          response.setEncoding("utf8");
          let text = "";
          response.on("data", (chunk: string) => {
            text += chunk;
          });
          response.on("end", () => reject(new Error(`HTTP ${response.statusCode}: ${text}`)));
          return;
        }
        response.on("data", (chunk: Buffer) => {
          const now = performance.now();
          if (Number.isNaN(first)) first = now;
          else {
            gaps++;
            gapMaxMs = gaps === 1 ? now - last : Math.max(gapMaxMs, now - last);
          }
          last = now;
          for (let at = chunk.indexOf("data:"); at >= 0; at = chunk.indexOf("data:", at + 5)) events++;
        });
        const traceId = String(response.headers["x-kvasir-trace-id"] ?? "");
        response.on("end", () => {
          const times = { ttftMs: first - start, totalMs: performance.now() - start };
          resolve({ ...times, events, gapMaxMs, gapMeanMs: gaps === 0 ? Number.NaN : (last - first) / gaps, traceId });
        });
        response.on("error", reject);
      },
    );
    call.on("error", reject);
    call.end(body);
  });
}

/** Runs `total` calls of `one`, at most `concurrency` at a time. */
export async function runLoad<Times extends StreamTimes>(
  total: number,
  concurrency: number,
  one: (index: number) => Promise<Times>,
): Promise<LoadResult<Times>> {
  const streams: Times[] = [];
  const start = performance.now();
  let next = 0;
  await Promise.all(
    Array.from({ length: concurrency }, async () => {
      while (next < total) streams.push(await one(next++));
    }),
  );
  return { streams, wallMs: performance.now() - start };
}

export function keepAliveAgent(concurrency: number): Agent {
  return new Agent({ keepAlive: true, maxSockets: concurrency });
}
