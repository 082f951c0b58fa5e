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

export function a100(counts: Parameters<typeof rolesOf>[0], extra: Partial<SimulationSpec> = {}): SimulationSpec {
  const profile = DEVICE_PROFILES["a100-opt-13b"] as DeviceProfile;
  return { ...SIMULATION_DEFAULTS, profile, roles: rolesOf(counts), ...extra };
}
