export interface StopResult {
  /** Text that may be shown. */
  readonly text: string;
  /** The stop string that was found; nothing after it is shown, and it is not shown itself. */
  readonly matched?: string;
}

/** Watches text for stop strings across the borders of its pieces. */
export interface StopMatcher {
  push(piece: string): StopResult;
  /** What was held back because it might have begun a stop string. */
  flush(): string;
}

/**
 * Holds back only the longest end of the text that begins some stop string. The match that begins first wins, at the same place the
 * longest one that is complete there when it is seen.
 */
export function createStopMatcher(stops: readonly string[]): StopMatcher {
  if (stops.length === 0) return { push: (text) => ({ text }), flush: () => "" };
  let held = "";
  return {
    push(piece) {
      held += piece;
      let at = -1;
      let matched = "";
      for (const stop of stops) {
        const found = held.indexOf(stop);
        if (found < 0) continue;
        if (at < 0 || found < at || (found === at && stop.length > matched.length)) {
          at = found;
          matched = stop;
        }
      }
      if (at >= 0) {
        const text = held.slice(0, at);
        held = "";
        return { text, matched };
      }
      const keep = overlap(held, stops);
      const text = held.slice(0, held.length - keep);
      held = held.slice(held.length - keep);
      return { text };
    },
    flush() {
      const text = held;
      held = "";
      return text;
    },
  };
}

/** Length of the longest end of `text` that is a proper beginning of a stop string. */
function overlap(text: string, stops: readonly string[]): number {
  let longest = 0;
  for (const stop of stops) {
    for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
      if (text.endsWith(stop.slice(0, length))) longest = length;
    }
  }
  return longest;
}
