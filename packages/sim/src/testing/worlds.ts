import { rolesOf, SIMULATION_DEFAULTS, type SimulationSpec } from "../cluster-spec.ts";
import { DEVICE_PROFILES, type DeviceProfile } from "../device-profile.ts";
import { exponential, randomOf } from "../random.ts";
import type { Trace, TraceRequest } from "../trace.ts";

/** Poisson arrivals of requests that `draw` makes. */
export function poissonTrace(
  perSecond: number,
  count: number,
  seed: number,
  draw: (random: () => number) => { promptTokenCount: number; outputTokenCount: number },
): Trace {
  const random = randomOf(seed);
  let arrivalMs = 0;
  const requests: TraceRequest[] = Array.from({ length: count }, () => {
    arrivalMs += exponential(random, perSecond) * 1_000;
    return { arrivalMs, ...draw(random), prefixIds: [], tenant: "t" };
  });
  return { name: "poisson", requests, prefixBlockSize: 0 };
}

/** Chat-like lengths: prompts of 200 to 1,800 tokens, answers of 20 to 380. */
export function chat(random: () => number): { promptTokenCount: number; outputTokenCount: number } {
  return { promptTokenCount: 200 + Math.floor(random() * 1_600), outputTokenCount: 20 + Math.floor(random() * 360) };
}

/** Conversations in turns: each prompt is the one before with some blocks of 64 tokens more. Old ones end, new ones begin. */
export function conversationTrace(perSecond: number, count: number, seed: number): Trace {
  const random = randomOf(seed);
  const conversations: number[][] = [];
  let nextId = 0;
  let arrivalMs = 0;
  const requests = Array.from({ length: count }, (): TraceRequest => {
    arrivalMs += exponential(random, perSecond) * 1_000;
    const index = Math.floor(random() * 24);
    const before = conversations[index] ?? [];
    const prefixIds = [...(before.length < 32 ? before : []), ...Array.from({ length: 6 }, () => nextId++)];
    conversations[index] = prefixIds;
    const outputTokenCount = 20 + Math.floor(random() * 100);
    return { arrivalMs, promptTokenCount: 64 * prefixIds.length, outputTokenCount, prefixIds, tenant: "t" };
  });
  return { name: "conversations", requests, prefixBlockSize: 64 };
}

export function a100(counts: Parameters<typeof rolesOf>[0], extra: Partial<SimulationSpec> = {}): SimulationSpec {
  const profile = DEVICE_PROFILES["a100-opt-13b"] as DeviceProfile;
  return { ...SIMULATION_DEFAULTS, profile, roles: rolesOf(counts), ...extra };
}
