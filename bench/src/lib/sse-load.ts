import { Agent, request } from "node:http";

export interface StreamTimes {
  /** Arrival to first content event. */
  readonly ttftMs: number;
  /** Arrival to the end of the body. */
  readonly totalMs: number;
  /** Content events seen. */
  readonly events: number;
}

export interface LoadResult {
  readonly streams: readonly StreamTimes[];
  readonly wallMs: number;
}

/** One streaming POST; counts `data:` events by bytes without parsing them, so that the client stays cheap. */
export function streamOnce(url: URL, body: string, agent: Agent): Promise<StreamTimes> {
  return new Promise((resolve, reject) => {
    const start = performance.now();
    let first = Number.NaN;
    let events = 0;
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
          if (Number.isNaN(first)) first = performance.now();
          for (let at = chunk.indexOf("data:"); at >= 0; at = chunk.indexOf("data:", at + 5)) events++;
        });
        response.on("end", () => resolve({ ttftMs: first - start, totalMs: performance.now() - start, events }));
        response.on("error", reject);
      },
    );
    call.on("error", reject);
    call.end(body);
  });
}

/** Runs `total` calls of `one`, at most `concurrency` at a time. */
export async function runLoad(
  total: number,
  concurrency: number,
  one: (index: number) => Promise<StreamTimes>,
): Promise<LoadResult> {
  const streams: StreamTimes[] = [];
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
