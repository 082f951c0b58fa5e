import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Instant, NEVER } from "../time.ts";
import { StoreDirectory } from "./store-directory.ts";
import type { StoredBlock, StoreEffect, StoreEvent, StoreLimits } from "./store-event.ts";

const LIMITS: StoreLimits = { memoryBytes: 300, diskBytes: 500, tenantBytes: 10_000, blockCount: 20, diskOpenShare: 1 };
const at = (seconds: number) => (seconds * 1e9) as Instant;
const keyOf = (number: number) => Uint8Array.from({ length: 16 }, (_, index) => (index % 4 === 0 ? number + 1 : index));
const numberOf = (key: Uint8Array) => (key[0] ?? 0) - 1;
const keysOf = (...numbers: number[]) => Uint8Array.from(numbers.flatMap((number) => [...keyOf(number)]));
const block = (number: number, facts: Partial<StoredBlock> = {}): StoredBlock => ({
  ...{ key: keyOf(number), tenant: "a", position: number * 32, byteCount: 100, expiresAt: NEVER },
  ...facts,
});

/** A directory whose sidecar does at once what it is asked, and what it was asked, in short. */
class World {
  readonly directory: StoreDirectory;
  readonly log: string[] = [];
  readonly memory = new Set<number>();
  readonly disk = new Set<number>();

  constructor(limits: Partial<StoreLimits> = {}) {
    this.directory = new StoreDirectory({ ...LIMITS, ...limits });
  }

  tell(event: StoreEvent, now: Instant): void {
    const effects = this.directory.apply(event, now);
    this.directory.checkInvariants();
    for (const effect of effects) this.#perform(effect, now);
  }

  offer(blocks: readonly StoredBlock[], seconds: number, sourceId = "w"): void {
    this.tell({ kind: "BlocksOffered", sourceId, blocks }, at(seconds));
  }

  #perform(effect: StoreEffect, now: Instant): void {
    switch (effect.kind) {
      case "PullBlocks":
        this.log.push(`pull ${effect.keys.map(numberOf).join(" ")}`);
        for (const key of effect.keys) {
          this.memory.add(numberOf(key));
          this.tell({ kind: "BlockArrived", key }, now);
        }
        break;
      case "PersistBlock":
        this.log.push(`persist ${numberOf(effect.key)}`);
        this.disk.add(numberOf(effect.key));
        this.tell({ kind: "BlockPersisted", key: effect.key }, now);
        break;
      case "DropFromMemory":
        this.log.push(`drop ${numberOf(effect.key)}`);
        this.memory.delete(numberOf(effect.key));
        break;
      case "RemoveBlock":
        this.log.push(`remove ${numberOf(effect.key)}`);
        this.memory.delete(numberOf(effect.key));
        this.disk.delete(numberOf(effect.key));
        break;
      default:
        break;
    }
  }
}

test("what is offered is pulled, written and found again, and leaves memory before it leaves the disk", () => {
  const world = new World();
  world.offer([block(0), block(1)], 0);
  expect(world.log).toEqual(["pull 0 1", "persist 0", "persist 1"]);
  world.offer([block(2), block(3)], 1);
  // Memory has room for three: the end of the text leaves first, and stays on disk.
  expect(world.log.slice(3)).toEqual(["drop 1", "pull 2 3", "persist 2", "persist 3"]);
  expect(world.directory.lookUp(keysOf(0, 1, 2, 9, 3), "a", at(2))).toBe(3);
});

test("a block that is on its way is pulled once, and can be read when it is there", () => {
  const { directory } = new World();
  const offered = (sourceId: string) => directory.apply({ kind: "BlocksOffered", sourceId, blocks: [block(0)] }, at(0));
  expect(offered("w1")).toHaveLength(1);
  expect(offered("w2")).toEqual([]);
  expect(directory.lookUp(keysOf(0), "a", at(0))).toBe(0);
  directory.apply({ kind: "PullFailed", key: keyOf(0) }, at(1));
  expect(offered("w2")).toEqual([{ kind: "PullBlocks", sourceId: "w2", keys: [keyOf(0)] }]);
  directory.apply({ kind: "BlockArrived", key: keyOf(0) }, at(2));
  expect(directory.lookUp(keysOf(0), "a", at(2))).toBe(1);
});

test("a nearly full disk takes what is used for the second time", () => {
  const world = new World({ diskOpenShare: 0 });
  world.offer([block(0)], 0);
  expect(world.log).toEqual(["pull 0"]);
  // It was asked for before it was there: that is a use.
  expect(world.directory.lookUp(keysOf(1), "a", at(1))).toBe(0);
  world.offer([block(1)], 2);
  expect(world.log).toEqual(["pull 0", "pull 1", "persist 1"]);
});

test("a tenant above its share loses its own blocks, nobody else's", () => {
  const world = new World({ tenantBytes: 200, memoryBytes: 1000 });
  world.offer([block(0, { tenant: "b" })], 0);
  world.offer([block(1), block(2)], 1);
  world.offer([block(3)], 2);
  expect(world.directory.tenantBytes("a")).toBe(200);
  expect(world.log).toContain("remove 2");
  expect(world.directory.lookUp(keysOf(0), "b", at(3))).toBe(1);
  expect(world.directory.lookUp(keysOf(0), "a", at(3)), "another tenant's").toBe(0);
});

test("what was read from disk is in memory, as far as it has room beside what is pinned there", () => {
  const world = new World({ memoryBytes: 200 });
  world.offer([block(0), block(1)], 0);
  world.offer([block(2), block(3)], 1);
  expect([...world.memory]).toEqual([2, 3]);
  world.log.length = 0;
  world.memory.add(0);
  world.tell({ kind: "BlockLoaded", key: keyOf(0) }, at(2));
  expect(world.log).toEqual(["drop 3"]);
  for (const number of [0, 2]) world.directory.pin(keyOf(number));
  world.tell({ kind: "BlockLoaded", key: keyOf(1) }, at(3));
  expect(world.log).toEqual(["drop 3", "drop 1"]);
  expect(world.directory.lookUp(keysOf(0, 1, 2, 3), "a", at(4)), "all are on disk").toBe(4);
});

test("a pinned block neither leaves nor expires", () => {
  const world = new World({ diskBytes: 0 });
  world.offer([block(0, { expiresAt: at(10) })], 0);
  expect(world.directory.pin(keyOf(0))).toBe(true);
  expect(world.directory.pin(keyOf(7))).toBe(false);
  world.offer([block(1), block(2), block(3), block(4)], 1);
  world.tell({ kind: "TimePassed" }, at(11));
  expect(world.memory.has(0)).toBe(true);
  expect(world.directory.lookUp(keysOf(0), "a", at(11)), "but is too old to be given to anybody new").toBe(0);
  world.directory.unpin(keyOf(0), at(12));
  world.tell({ kind: "TimePassed" }, at(12));
  expect(world.memory.has(0)).toBe(false);
});

describe("a block that an operator keeps", () => {
  const keep = (world: World, seconds: number, ...numbers: number[]) =>
    world.tell({ kind: "BlocksKept", keys: numbers.map(keyOf) }, at(seconds));

  test("leaves memory for the disk only, and is the first to go when it is not kept any more", () => {
    const world = new World({ memoryBytes: 200, diskBytes: 300, diskOpenShare: 0 });
    keep(world, 0, 0);
    world.offer([block(0)], 0);
    expect(world.log, "written, though used once").toEqual(["pull 0", "persist 0"]);
    for (const number of [1, 2, 3, 4, 5, 6]) {
      world.directory.lookUp(keysOf(number), "a", at(number));
      world.offer([block(number)], number);
    }
    expect([...world.disk]).toContain(0);
    expect(world.memory.has(0)).toBe(false);
    expect(world.directory.lookUp(keysOf(0), "a", at(7))).toBe(1);
    expect(world.directory.keptBlockCounts).toEqual({ wanted: 1, present: 1 });
    keep(world, 8);
    for (const number of [7, 8, 9]) {
      for (let use = 0; use < 4; use++) world.directory.lookUp(keysOf(number), "a", at(500 + number));
      world.offer([block(number)], 500 + number);
    }
    expect(world.directory.lookUp(keysOf(0), "a", at(600))).toBe(0);
  });

  test("stays in memory where there is no disk, and may be kept before it comes and after", () => {
    const world = new World({ diskBytes: 0 });
    keep(world, 0, 0, 1);
    world.offer([block(0), block(5)], 0);
    keep(world, 1, 0, 1, 5);
    world.offer([block(2), block(3), block(4)], 2);
    expect([...world.memory]).toEqual([0, 5, 2]);
    expect(world.directory.keptBlockCounts).toEqual({ wanted: 3, present: 2 });
  });

  test("leaves when its life is over", () => {
    const world = new World();
    keep(world, 0, 0);
    world.offer([block(0, { expiresAt: at(10) })], 0);
    world.tell({ kind: "TimePassed" }, at(10));
    expect([...world.disk, ...world.memory]).toEqual([]);
  });

  test("of a tenant above its share is not what it loses", () => {
    const world = new World({ tenantBytes: 200, memoryBytes: 1000 });
    world.offer([block(0), block(1)], 0);
    keep(world, 1, 1);
    world.offer([block(2)], 2);
    expect(world.log).toContain("remove 0");
    expect(world.directory.has(keyOf(1))).toBe(true);
  });
});

test("everything pinned: an offer is refused and nothing breaks", () => {
  const world = new World({ diskBytes: 0 });
  world.offer([block(0), block(1), block(2)], 0);
  for (const number of [0, 1, 2]) world.directory.pin(keyOf(number));
  world.offer([block(3)], 1);
  expect(world.log).toEqual(["pull 0 1 2"]);
});

describe("after a restart", () => {
  test("what the disk has is found, as far as it fits and lives", () => {
    const world = new World({ diskBytes: 200 });
    for (const [number, expiresAt] of [NEVER, at(1), NEVER, NEVER].entries())
      world.tell({ kind: "BlockRecovered", block: block(number, { expiresAt }) }, at(5));
    expect(world.log).toEqual(["remove 1", "remove 3"]);
    expect(world.directory.lookUp(keysOf(0), "a", at(6))).toBe(1);
    expect([...world.directory.keysOn("disk")].map(numberOf)).toEqual([0, 2]);
    expect([...world.directory.keysOn("memory")]).toEqual([]);
  });

  test("a block that turns out to be missing is a miss, and may come again", () => {
    const world = new World();
    world.tell({ kind: "BlockRecovered", block: block(0) }, at(0));
    world.tell({ kind: "BlockMissing", key: keyOf(0) }, at(1));
    expect(world.directory.lookUp(keysOf(0), "a", at(1))).toBe(0);
    world.offer([block(0)], 2);
    expect(world.directory.lookUp(keysOf(0), "a", at(3))).toBe(1);
  });
});

test("whatever happens in whatever order, the books are right and the limits hold", () => {
  const number = fc.nat(9);
  const operation = fc.oneof(
    fc.record({
      kind: fc.constant("offer" as const),
      number,
      count: fc.integer({ min: 1, max: 4 }),
      bytes: fc.constantFrom(50, 100, 130),
    }),
    fc.record({
      kind: fc.constantFrom(
        "arrived",
        "failed",
        "persisted",
        "unwritten",
        "missing",
        "pin",
        "unpin",
        "look",
        "keep" as const,
      ),
      number,
    }),
    fc.record({ kind: fc.constant("time" as const), seconds: fc.nat(30) }),
  );
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 120 }), (operations) => {
      const directory = new StoreDirectory({ ...LIMITS, tenantBytes: 400, blockCount: 7, diskOpenShare: 0.5 });
      const pins = new Map<number, number>();
      let kept = new Set<number>();
      let seconds = 0;
      for (const operation of operations) {
        const now = at(seconds);
        const apply = (event: StoreEvent) => {
          for (const effect of directory.apply(event, now))
            if (effect.kind === "RemoveBlock" && operation.kind !== "missing") {
              const number = numberOf(effect.key);
              expect(pins.get(number) ?? 0).toBe(0);
              // Block 4 has an end.
              expect(number !== 4 && kept.has(number), `${number} is kept`).toBe(false);
            }
        };
        if (operation.kind === "time") {
          seconds += operation.seconds;
          apply({ kind: "TimePassed" });
        } else if (operation.kind === "offer") {
          const blocks = Array.from({ length: operation.count }, (_, index) => {
            const which = (operation.number + index) % 10;
            const facts = { tenant: which % 2 === 0 ? "a" : "b", byteCount: operation.bytes };
            return block(which, which === 4 ? { ...facts, expiresAt: at(20) } : facts);
          });
          apply({ kind: "BlocksOffered", sourceId: "w", blocks });
        } else {
          const key = keyOf(operation.number);
          const held = pins.get(operation.number) ?? 0;
          if (operation.kind === "arrived") apply({ kind: "BlockArrived", key });
          else if (operation.kind === "failed") apply({ kind: "PullFailed", key });
          else if (operation.kind === "persisted") apply({ kind: "BlockPersisted", key });
          else if (operation.kind === "unwritten") apply({ kind: "PersistFailed", key });
          else if (operation.kind === "missing" && held === 0) apply({ kind: "BlockMissing", key });
          else if (operation.kind === "keep") {
            kept = new Set([operation.number, 5]);
            apply({ kind: "BlocksKept", keys: [...kept].map(keyOf) });
          } else if (operation.kind === "look") directory.lookUp(key, operation.number % 2 === 0 ? "a" : "b", now);
          else if (operation.kind === "pin" && directory.pin(key)) pins.set(operation.number, held + 1);
          else if (operation.kind === "unpin" && held > 0) {
            directory.unpin(key, now);
            pins.set(operation.number, held - 1);
          }
        }
        directory.checkInvariants();
      }
    }),
    { numRuns: 500 },
  );
});
