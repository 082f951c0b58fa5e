const isColourWanted = process.stdout.isTTY === true && !process.env.NO_COLOR;
const paint = (code, text) => (isColourWanted ? `\x1b[${code}m${text}\x1b[0m` : text);

export const green = (text) => paint(32, text);
export const red = (text) => paint(31, text);
export const dim = (text) => paint(2, text);

export function seconds(sinceMs) {
  return `${((performance.now() - sinceMs) / 1000).toFixed(1)} s`;
}

/**
 * Runs one step and says how it ended and how long it took: `✓ dependencies 3.2 s`. `run` gets a function that shows progress and may
 * answer with a remark for the line. What it throws goes on to the caller.
 */
export async function step(name, run) {
  const start = performance.now();
  try {
    const remark = await run((line) => process.stdout.write(`  ${dim(line)}\n`));
    process.stdout.write(`${green("✓")} ${name} ${seconds(start)}${remark ? dim(` · ${remark}`) : ""}\n`);
  } catch (error) {
    process.stdout.write(`${red("✗")} ${name} ${seconds(start)}\n`);
    throw error;
  }
}
