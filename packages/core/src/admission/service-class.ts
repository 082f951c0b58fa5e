import type { Nanos } from "../time.ts";
import { nanosFromMs } from "../time.ts";

/** How urgent a request is beside others; OpenAI's service tiers. */
export type ServiceClass = "priority" | "default" | "flex";

export const SERVICE_CLASSES: readonly ServiceClass[] = ["priority", "default", "flex"];

/**
 * Tokens that a class is ahead of its tenant's share (negative) or behind it. Larger distances: classes are kept apart for longer; smaller: shares are
 * kept more exactly. Being finite they starve nobody: who waits is served at the latest when the others have had so much more.
 */
export const CLASS_OFFSET_TOKENS: Readonly<Record<ServiceClass, number>> = {
  priority: -16_384,
  default: 0,
  flex: 131_072,
};

/** Of requests without a TTFT target: they stand among those that have one as if theirs were this. */
export const CLASS_PATIENCE: Readonly<Record<ServiceClass, Nanos>> = {
  priority: nanosFromMs(2_000),
  default: nanosFromMs(10_000),
  flex: nanosFromMs(60_000),
};
