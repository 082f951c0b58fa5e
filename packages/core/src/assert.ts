/** Stops on a broken invariant of ours. Never for outside input, which has typed outcomes. */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(`invariant broken: ${message}`);
}
