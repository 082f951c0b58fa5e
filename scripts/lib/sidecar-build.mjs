import { existsSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { ROOT, SIDECAR_BINARY, SIDECAR_DIR, SIDECAR_TARGET } from "./paths.mjs";
import { findProgram, run } from "./processes.mjs";
import { digestOfFiles, isStamped, writeStamp } from "./stamp.mjs";
import { StopError } from "./stop-error.mjs";

/** The oldest Rust that compiles the sidecar: `rust-version` of its Cargo.toml. */
const RUST_MIN = [1, 89];
const INSTALL = "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y";
const PROGRESS_EVERY_MS = 10_000;

/** Cargo's path, after a look that it, and the linker it calls, can do the work. */
export async function ensureRust() {
  const cargo = findProgram("cargo", [join(homedir(), ".cargo/bin")]);
  if (cargo === undefined) throw new StopError(`Rust is missing; install it with: ${INSTALL}`);
  const { code, output } = await run(cargo, ["--version"], { cwd: SIDECAR_DIR });
  const found = /cargo (\d+)\.(\d+)/.exec(output);
  if (code !== 0 || found === null)
    throw new StopError(`${cargo} --version failed (${output}); install Rust with: ${INSTALL}`);
  const [major, minor] = [Number(found[1]), Number(found[2])];
  if (major < RUST_MIN[0] || (major === RUST_MIN[0] && minor < RUST_MIN[1])) {
    throw new StopError(`Rust ${major}.${minor} is older than ${RUST_MIN.join(".")}; get a newer one with: ${INSTALL}`);
  }
  if (findProgram("cc") === undefined) {
    throw new StopError("a C compiler is missing, which Rust links with; on Debian: apt-get install gcc libc6-dev");
  }
  return cargo;
}

/** Builds the sidecar in release mode unless its binary is of these very sources. Answers with a remark. */
export async function ensureSidecar(cargo, say) {
  const sources = digestOfFiles(ROOT, ["services/sidecar", "proto"], ["target"]);
  const stampPath = join(SIDECAR_TARGET, "kvasir-sidecar.stamp");
  if (existsSync(SIDECAR_BINARY) && isStamped(stampPath, stampOf(sources))) return "up to date";
  say("cargo build --release (some minutes the first time)");
  const flags = ["build", "--release", "--locked", "-p", "kvasir-sidecar", "-p", "kvasir-store"];
  const { code, output } = await run(cargo, flags, { cwd: SIDECAR_DIR, onLine: crateProgress(say) });
  if (code !== 0) throw new StopError(`cargo build failed with code ${code}:\n${output}`);
  writeStamp(stampPath, stampOf(sources));
  return undefined;
}

/** The sources and the binary as it lies there: another build into the same place makes ours be asked again. */
function stampOf(sources) {
  const { mtimeMs, size } = statSync(SIDECAR_BINARY);
  return `${sources} ${mtimeMs} ${size}`;
}

/** Says every few seconds how far cargo is, from its `Compiling NAME` lines. */
export function crateProgress(say) {
  let count = 0;
  let last = performance.now();
  return (line) => {
    const crate = /^\s*(?:Compiling|Checking) (\S+)/.exec(line);
    if (crate === null) return;
    count++;
    if (performance.now() - last < PROGRESS_EVERY_MS) return;
    last = performance.now();
    say(`${count} crates, now ${crate[1]}`);
  };
}
