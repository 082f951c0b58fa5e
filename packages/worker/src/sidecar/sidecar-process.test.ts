import { chmodSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import type { Log } from "../log.ts";
import { SILENT } from "../log.ts";
import { eventually } from "../testing/quiet.ts";
import { type SidecarCommand, sidecarLauncher } from "./sidecar-process.ts";

const directory = mkdtempSync(join(tmpdir(), "sidecar-process-"));
let scripts = 0;

/** A program in the sidecar's place. */
function program(body: string): SidecarCommand {
  const binary = join(directory, `program-${scripts++}.mjs`);
  writeFileSync(binary, `#!${process.execPath}\n${body}`);
  chmodSync(binary, 0o755);
  return {
    binary,
    role: "decode",
    workerId: "w",
    model: "/models/m",
    socketPath: (epoch) => join(directory, `${epoch}.sock`),
    transferListen: "127.0.0.1:0",
    advertiseHost: undefined,
    device: "cuda:1",
    kvBytes: 1024,
    swapBytes: 2048,
    kvMemoryPercent: 45,
    deterministic: true,
    blockSize: 32,
    kvDtype: "bf16",
    shards: 2,
    weights: "q8_0",
    threads: 2,
    cpus: undefined,
    stepTokenMax: 2048,
  };
}

const facts = { epoch: 9n, ticketKey: new Uint8Array(32).fill(0xab) };
const READY = `console.log(JSON.stringify({ event: "ready", socket: "/s" }));`;

test("it gets its flags as arguments and the key on stdin, tells how loading goes, and ends when stdin does", async () => {
  const out = join(directory, "seen.json");
  const command = program(`
    import { writeFileSync } from "node:fs";
    import { createInterface } from "node:readline";
    const lines = createInterface({ input: process.stdin });
    lines.once("line", (key) => {
      writeFileSync(${JSON.stringify(out)}, JSON.stringify({ key, args: process.argv.slice(2) }));
      console.log(JSON.stringify({ event: "loading", done_bytes: 5, total_bytes: 10 }));
      console.log(JSON.stringify({ event: "device", device: "cpu", reason: "no driver" }));
      ${READY}
    });
    lines.once("close", () => process.exit(0));`);
  const logged: string[] = [];
  const log: Log = { ...SILENT, info: (_fields, message) => logged.push(message) };
  const sidecar = await sidecarLauncher(command, log)(facts);
  expect(sidecar).toMatchObject({ socketPath: "/s" });
  const seen = JSON.parse(readFileSync(out, "utf8"));
  expect(seen.key).toBe("ab".repeat(32));
  expect(seen.args.join(" ")).toBe(
    `serve --role decode --model /models/m --socket ${join(directory, "9.sock")} --listen 127.0.0.1:0 --worker-id w --epoch 9 ` +
      "--device cuda:1 --kv-bytes 1024 --swap-bytes 2048 --kv-memory 0.45 --block-size 32 --kv-dtype bf16 --shards 2 --weights q8_0 " +
      "--threads 2 --step-token-max 2048 --deterministic",
  );
  expect(logged).toEqual(["sidecar: loading weights", "sidecar: where it computes"]);
  await sidecar.stop(5_000);
  expect(await sidecar.exited).toBe("exit code 0");
});

test("one that does not start is reported with its own words", async () => {
  const command = program(
    `console.error("error: model.safetensors: tensor a is missing; expected [4, 4]"); process.exit(1);`,
  );
  await expect(sidecarLauncher(command, SILENT)(facts)).rejects.toThrow(
    "the sidecar did not start: model.safetensors: tensor a is missing; expected [4, 4]",
  );
  await expect(sidecarLauncher({ ...command, binary: "/nowhere" }, SILENT)(facts)).rejects.toThrow("cannot run it");
});

test("one that ignores the end of stdin is killed after the grace; a death in between is told", async () => {
  const command = program(`${READY} setInterval(() => undefined, 1000);`);
  const stubborn = await sidecarLauncher(command, SILENT)(facts);
  await stubborn.stop(50);
  expect(await stubborn.exited).toBe("ended by SIGKILL");
  const killed = await sidecarLauncher(command, SILENT)(facts);
  process.kill(killed.pid ?? 0, "SIGTERM");
  expect(await killed.exited).toBe("ended by SIGTERM");
  await eventually(() => expect(() => process.kill(killed.pid ?? 0, 0)).toThrow());
});
