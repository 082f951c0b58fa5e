/** Why a service ends well. */
export type EndReason = "SIGTERM" | "SIGINT" | "parent gone";

/**
 * Resolves when the process is asked to end. With `parentWatch`, end of file on stdin counts: the launcher holds the other end,
 * so nothing outlives it, however it dies. A second signal ends the process at once.
 */
export function waitForEnd(parentWatch: boolean): Promise<EndReason> {
  return new Promise((resolve) => {
    let asked = false;
    const ask = (reason: EndReason): void => {
      if (asked && reason !== "parent gone") process.exit(130);
      asked = true;
      resolve(reason);
    };
    process.on("SIGTERM", () => ask("SIGTERM"));
    process.on("SIGINT", () => ask("SIGINT"));
    if (!parentWatch) return;
    process.stdin.on("end", () => ask("parent gone"));
    process.stdin.on("error", () => ask("parent gone"));
    process.stdin.resume();
  });
}

/** The one line on stdout that says a service can be used. */
export function announceReady(fields: {
  readonly service: string;
  readonly id: string;
  readonly admin: string;
  readonly grpc?: string;
  readonly http?: string;
}): void {
  process.stdout.write(`${JSON.stringify({ event: "ready", ...fields })}\n`);
}
