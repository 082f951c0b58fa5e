/** Ctrl-C reaches us once from the terminal and once through npm: within this time they are one. */
const SAME_REQUEST_MS = 500;
const PARENT_POLL_MS = 500;

/** Somebody's wish that this program ends: the first one is asked nicely for, the second insists. */
export interface StopRequest {
  readonly signal: AbortSignal;
  readonly requested: Promise<void>;
}

/** Listens for Ctrl-C, SIGTERM, a closed terminal and the end of our parent. `insist` is called at a second Ctrl-C. */
export function watchForStop(insist: () => void): StopRequest {
  const controller = new AbortController();
  const { promise, resolve } = Promise.withResolvers<void>();
  let requestedAt = Number.NEGATIVE_INFINITY;
  const request = (): void => {
    const now = performance.now();
    if (!controller.signal.aborted) {
      requestedAt = now;
      controller.abort();
      resolve();
    } else if (now - requestedAt > SAME_REQUEST_MS) insist();
  };
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, request);
  const parent = process.ppid;
  const poll = setInterval(() => {
    if (process.ppid === parent) return;
    clearInterval(poll);
    request();
  }, PARENT_POLL_MS);
  poll.unref();
  return { signal: controller.signal, requested: promise };
}
