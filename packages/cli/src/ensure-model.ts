import { resolveModel } from "@kvasir/models";

// Fetches or makes the model named by the first argument into the cache directory named by the second; prints what it does.
const [wanted = "", cacheDir = ""] = process.argv.slice(2);
try {
  await resolveModel(wanted, cacheDir, (line) => process.stdout.write(`${line}\n`));
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
