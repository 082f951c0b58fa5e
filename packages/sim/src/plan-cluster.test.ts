import { expect, test } from "vitest";
import { DEVICE_PROFILES, type DeviceProfile } from "./device-profile.ts";
import { planCluster } from "./plan-cluster.ts";
import { poissonTrace } from "./testing/worlds.ts";

test("every layout is tried, the best comes first; long prompts under a strict TBT want a split", () => {
  const profiles = [DEVICE_PROFILES["a100-opt-13b"] as DeviceProfile];
  const trace = poissonTrace(1, 40, 3, () => ({ promptTokenCount: 2_500, outputTokenCount: 60 }));
  const objective = { ttftMs: 3_000, tbtMs: 40 };
  const plans = planCluster({ trace, objective, deviceCount: 3, profiles, blockSize: 64, factors: [0.5, 4] });
  expect(plans.map(({ counts }) => JSON.stringify(counts)).sort()).toEqual([
    '{"mixed":3}',
    '{"prefill":1,"decode":2}',
    '{"prefill":2,"decode":1}',
  ]);
  const goodputs = plans.map(({ goodputPerSecond }) => goodputPerSecond);
  expect(goodputs).toEqual([...goodputs].sort((a, b) => b - a));
  expect(plans[0]?.counts.mixed).toBeUndefined();
});
