import { expect, test } from "vitest";
import { sharesFromText } from "./shares-text.ts";

const SHARES = [{ model: "m", shares: { floor: 7, tenants: [{ tenant: "a", counter: 9.5, isWaiting: true }] } }];

test("counters are read as they were written, and nothing else is believed", () => {
  expect(sharesFromText(JSON.stringify(SHARES))).toEqual(SHARES);
  expect(sharesFromText("[]")).toEqual([]);
  for (const text of ["", "7", "{}", '[{"model":7}]', '[{"model":"m","shares":{"floor":null,"tenants":[]}}]']) {
    expect(() => sharesFromText(text), text).toThrow();
  }
});
