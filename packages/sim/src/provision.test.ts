import { expect, test } from "vitest";
import { DEVICE_PROFILES, type DeviceProfile } from "./device-profile.ts";
import { provision } from "./provision.ts";
import { poissonTrace } from "./testing/worlds.ts";

const profile = (name: string) => DEVICE_PROFILES[name] as DeviceProfile;
const trace = poissonTrace(4, 60, 6, () => ({ promptTokenCount: 1_500, outputTokenCount: 60 }));
const question = {
  trace,
  objective: { ttftMs: 2_500, tbtMs: 60 },
  profiles: [profile("a100-opt-13b"), profile("h100-opt-13b")],
  workerMax: 4,
  blockSize: 64,
};

test("every cluster that is offered meets the targets, the cheapest comes first, and one by power takes no more than one by cost", () => {
  const byCost = provision({ ...question, least: "cost" });
  expect(byCost.length).toBeGreaterThan(1);
  const prices = byCost.map(({ dollarsPerHour }) => dollarsPerHour);
  expect(prices).toEqual([...prices].sort((a, b) => a - b));
  for (const cluster of byCost) {
    expect(cluster.attainment).toBeGreaterThanOrEqual(0.9);
    const watts = Object.entries(cluster.counts).reduce(
      (sum, [role, count]) => sum + count * (cluster.profiles[role as "mixed"]?.price?.watts ?? 0),
      0,
    );
    expect(cluster.watts).toBe(watts);
  }
  const [hungriest] = provision({ ...question, least: "power" });
  expect(hungriest?.watts).toBe(Math.min(...byCost.map(({ watts }) => watts)));
});

test("what no cluster of so many workers serves is not offered", () => {
  expect(provision({ ...question, least: "cost", workerMax: 1, objective: { ttftMs: 100, tbtMs: 60 } })).toEqual([]);
});
