import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";

/** Digest of files' names and contents; `roots` are files or folders, folders named in `without` are left out. */
export function digestOfFiles(base, roots, without = []) {
  const hash = createHash("sha256");
  const visit = (path) => {
    let entries;
    try {
      entries = readdirSync(path, { withFileTypes: true });
    } catch (error) {
      if (error.code !== "ENOTDIR") return;
      hash.update(`${relative(base, path)}\0`).update(readFileSync(path));
      return;
    }
    for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      if (!without.includes(entry.name)) visit(join(path, entry.name));
    }
  };
  for (const root of roots) visit(join(base, root));
  return hash.digest("hex");
}

/** Whether `path` holds this stamp: then what it stands for is up to date. */
export function isStamped(path, stamp) {
  return existsSync(path) && readFileSync(path, "utf8") === stamp;
}

export function writeStamp(path, stamp) {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, stamp);
}
