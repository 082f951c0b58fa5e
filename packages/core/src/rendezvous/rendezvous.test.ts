import fc from "fast-check";
import { expect, test } from "vitest";
import { type RendezvousNode, rendezvous, replicaCount } from "./rendezvous.ts";

const key = fc.uint8Array({ minLength: 16, maxLength: 16 });
const nodes = fc
  .uniqueArray(fc.integer({ min: 0, max: 999 }), { minLength: 2, maxLength: 12 })
  .chain((ids) =>
    fc.tuple(...ids.map((id) => fc.record({ id: fc.constant(`store-${id}`), weight: fc.constantFrom(1, 2, 5) }))),
  );
const idsOf = (chosen: readonly RendezvousNode[]) => chosen.map(({ id }) => id);

/** Keys as digests are: all bits alike. */
function digests(count: number): Uint8Array[] {
  let state = 1;
  const next = () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return state >>> 16;
  };
  return Array.from({ length: count }, () => Uint8Array.from({ length: 16 }, next));
}

test("a node that leaves gives up its keys only, and they go where their next replica was", () => {
  fc.assert(
    fc.property(nodes, key, fc.nat(), (all, bytes, which) => {
      const gone = all[which % all.length] as RendezvousNode;
      const before = idsOf(rendezvous(all, bytes, all.length));
      const left = all.filter((node) => node !== gone);
      expect(idsOf(rendezvous(left, bytes, all.length))).toEqual(before.filter((id) => id !== gone.id));
    }),
  );
});

test("a node that joins takes keys and moves none between the others, in whatever order nodes are named", () => {
  fc.assert(
    fc.property(nodes, key, (all, bytes) => {
      const [joined, ...others] = all;
      const [before] = rendezvous(others, bytes, 1);
      const [after] = rendezvous([...others.toReversed(), joined as RendezvousNode], bytes, 1);
      expect([before?.id, joined?.id]).toContain(after?.id);
    }),
  );
});

test("a joining node takes its share: of 20,000 keys a fifth goes to the fifth node, within 1 %", () => {
  const four = ["a", "b", "c", "d"].map((id) => ({ id, weight: 1 }));
  const moved = digests(20_000).filter(
    (bytes) => rendezvous([...four, { id: "e", weight: 1 }], bytes, 1)[0]?.id === "e",
  );
  expect(moved.length / 20_000).toBeGreaterThan(0.19);
  expect(moved.length / 20_000).toBeLessThan(0.21);
});

test("weights share keys in their ratio", () => {
  const pair = [
    { id: "small", weight: 1 },
    { id: "large", weight: 3 },
  ];
  const large = digests(20_000).filter((bytes) => rendezvous(pair, bytes, 1)[0]?.id === "large");
  expect(large.length / 20_000).toBeGreaterThan(0.74);
  expect(large.length / 20_000).toBeLessThan(0.76);
});

test("hot blocks have more replicas, never more than there are nodes", () => {
  expect([0, 15, 16, 40, 500].map((uses) => replicaCount(uses, 16, 4))).toEqual([1, 1, 2, 3, 4]);
});
