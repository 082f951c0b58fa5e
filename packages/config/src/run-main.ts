import type { OptionSpecs, OptionValues } from "./option-spec.ts";
import type { Options } from "./options.ts";

/**
 * Runs a program: prints help (exit 0) or what is wrong with the options (one line, exit 2), else calls `main`. A start that fails
 * is one line on stderr and exit 1; its stack is shown when KVASIR_DEBUG is set.
 */
export async function runMain<S extends OptionSpecs>(
  options: Options<S>,
  main: (values: OptionValues<S>) => Promise<void>,
): Promise<void> {
  const outcome = options.parse(process.argv.slice(2), process.env);
  switch (outcome.kind) {
    case "help":
      process.stdout.write(outcome.text);
      return;
    case "invalid":
      process.stderr.write(`${options.name}: ${outcome.message}\n`);
      process.exitCode = 2;
      return;
    case "values":
      try {
        await main(outcome.values);
      } catch (error) {
        const message = error instanceof Error ? error.message : String(error);
        process.stderr.write(`${options.name}: ${message.replaceAll("\n", " ")}\n`);
        if (process.env.KVASIR_DEBUG && error instanceof Error) process.stderr.write(`${error.stack}\n`);
        // What had been started before the failure must not keep the process alive.
        process.exit(1);
      }
  }
}
