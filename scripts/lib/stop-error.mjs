/** Something a person has to put right: its message is one line that says what and how. Shown without a stack. */
export class StopError extends Error {
  name = "StopError";
}

/** Runs the main function of a script: a StopError becomes one line and exit code 1, any other error keeps its stack. */
export async function runScript(main) {
  try {
    process.exitCode = await main();
  } catch (error) {
    process.stderr.write(`${error instanceof StopError ? error.message : error.stack}\n`);
    process.exitCode = 1;
  }
}
