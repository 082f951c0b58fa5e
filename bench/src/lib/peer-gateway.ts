import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { REPOSITORY } from "./report.ts";

export interface PeerGateway {
  readonly name: string;
  readonly url: string;
  readonly pid: number;
  stop(): void;
}

/** SGLang's model gateway before one OpenAI upstream, from the PyPI package `sglang-router` in `.cache/peers`; undefined when absent. */
export async function startSglangGateway(upstream: string): Promise<PeerGateway | undefined> {
  const python = join(REPOSITORY, ".cache", "peers", "bin", "python");
  if (!existsSync(python)) return undefined;
  const port = await freePort();
  const flags = ["--worker-urls", upstream, "--host", "127.0.0.1", "--port", String(port), "--log-level", "error"];
  const child: ChildProcess = spawn(
    python,
    ["-m", "sglang_router.launch_router", ...flags, "--prometheus-port", String(await freePort())],
    { stdio: "ignore" },
  );
  const url = `http://127.0.0.1:${port}`;
  for (let tries = 0; tries < 100; tries++) {
    if (child.exitCode !== null || child.pid === undefined) return undefined;
    const answer = await fetch(`${url}/v1/models`).catch(() => undefined);
    if (answer?.ok) return { name: "SGLang gateway", url, pid: child.pid, stop: () => child.kill() };
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  child.kill();
  return undefined;
}

export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      const port = typeof address === "object" && address !== null ? address.port : 0;
      server.close(() => resolve(port));
    });
  });
}
