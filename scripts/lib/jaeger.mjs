import { existsSync, mkdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import { ensureGo } from "./go.mjs";
import { CACHE, ROOT } from "./paths.mjs";
import { run } from "./processes.mjs";
import { digestOfFiles, isStamped, writeStamp } from "./stamp.mjs";
import { StopError } from "./stop-error.mjs";

const MODULE = join(ROOT, "scripts/jaeger");
const PACKAGE = "github.com/jaegertracing/jaeger/cmd/all-in-one";

/**
 * Jaeger's all-in-one program, built from its Go module at the version and checksums of scripts/jaeger. Answers with its path; some minutes
 * the first time.
 */
export async function ensureJaeger(say) {
  if (process.env.KVASIR_JAEGER) return process.env.KVASIR_JAEGER;
  const folder = join(CACHE, "jaeger");
  const program = join(folder, "jaeger-all-in-one");
  const stampPath = join(folder, "stamp");
  const stamp = digestOfFiles(ROOT, ["scripts/jaeger"]);
  if (existsSync(program) && isStamped(stampPath, stamp)) return program;
  const go = await ensureGo(say);
  say("go build of Jaeger 1.62 (some minutes the first time)");
  mkdirSync(folder, { recursive: true });
  const fresh = `${program}.new`;
  const flags = ["build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w", "-o", fresh, PACKAGE];
  const env = { ...process.env, CGO_ENABLED: "0", GOFLAGS: "-buildvcs=false" };
  const { code, output } = await run(go, flags, { cwd: MODULE, env });
  if (code !== 0) {
    throw new StopError(
      `Jaeger could not be built (go build, code ${code}): ${output.split("\n").slice(-4).join(" ")}`,
    );
  }
  renameSync(fresh, program);
  writeStamp(stampPath, stamp);
  return program;
}
