import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { CACHE } from "./paths.mjs";
import { findProgram, run } from "./processes.mjs";
import { StopError } from "./stop-error.mjs";

/** Debian's package, and what its pages are made with. They are unpacked below the cache; nothing of the system changes. */
const PACKAGES = [
  ...["prometheus", "fonts-glyphicons-halflings", "libjs-bootstrap", "libjs-bootstrap4", "libjs-d3", "libjs-jquery"],
  ...["libjs-eonasdan-bootstrap-datetimepicker", "libjs-jquery-hotkeys", "libjs-moment", "libjs-moment-timezone"],
  ...["libjs-mustache", "libjs-popper.js", "libjs-rickshaw"],
];

/** The programs `prometheus` and `promtool`: on the PATH, else of Debian's package. Answers with the folder that has both. */
export async function ensurePrometheus(say) {
  const found = findProgram("prometheus");
  if (found !== undefined && findProgram("promtool") !== undefined) return found.slice(0, -"/prometheus".length);
  const folder = join(CACHE, "prometheus");
  const programs = join(folder, "usr/bin");
  if (existsSync(join(programs, "promtool"))) return programs;
  const [apt, dpkg] = [findProgram("apt-get"), findProgram("dpkg-deb")];
  if (apt === undefined || dpkg === undefined) {
    throw new StopError(
      "prometheus and promtool are not on the PATH, and this is no Debian to fetch them from; install Prometheus",
    );
  }
  say("fetching Debian's prometheus (23 MB)");
  const downloads = join(CACHE, "downloads/prometheus");
  rmSync(downloads, { recursive: true, force: true });
  mkdirSync(downloads, { recursive: true });
  const download = () => run(apt, ["download", "-o", "APT::Sandbox::User=root", ...PACKAGES], { cwd: downloads });
  let fetched = await download();
  if (fetched.code !== 0 && process.getuid?.() === 0 && (await run(apt, ["update"])).code === 0)
    fetched = await download();
  if (fetched.code !== 0) {
    throw new StopError(`Debian's prometheus could not be fetched: ${fetched.output.split("\n").at(-1)}`);
  }
  const fresh = `${folder}.new`;
  rmSync(fresh, { recursive: true, force: true });
  for (const file of readdirSync(downloads)) {
    const { code, output } = await run(dpkg, ["-x", join(downloads, file), fresh]);
    if (code !== 0) throw new StopError(`${file} could not be unpacked: ${output}`);
  }
  rmSync(folder, { recursive: true, force: true });
  renameSync(fresh, folder);
  rmSync(downloads, { recursive: true, force: true });
  return programs;
}
