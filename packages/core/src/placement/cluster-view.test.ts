import { expect, test } from "vitest";
import { ClusterView } from "./cluster-view.ts";
import { NOTHING_RESERVED } from "./reservations.ts";
import { at, facts, load, routerOptions } from "./testing/world.ts";

const none = () => NOTHING_RESERVED;
const view = () => new ClusterView(routerOptions().view);

test("a worker is in with its hello, and out with its stream", () => {
  const cluster = view();
  expect(cluster.attach(1, facts("d0"), 5, 1, at(0))).toEqual({ kind: "accepted" });
  expect(cluster.report(1, 5, 2, load({ freeBlockCount: 3 }), none, at(1))).toEqual({ kind: "accepted" });
  expect(cluster.get("d0")).toMatchObject({ epoch: 5, sequence: 2, load: { freeBlockCount: 3 } });
  expect(cluster.leave(1, at(2))).toBe("d0");
  expect(cluster.leave(1, at(3))).toBeUndefined();
  expect(cluster.size).toBe(0);
});

test("a gap in the sequence ends the stream and takes the worker out", () => {
  const cluster = view();
  cluster.attach(1, facts("d0"), 5, 1, at(0));
  expect(cluster.report(1, 5, 3, load(), none, at(1))).toEqual({
    kind: "refused",
    message: "report of d0 has sequence 3 after 1",
    lostWorkerId: "d0",
  });
  expect(cluster.size).toBe(0);
  expect(cluster.report(1, 5, 4, load(), none, at(1)).kind).toBe("refused");
});

test("an epoch never goes back, not even after its successor left", () => {
  const cluster = view();
  cluster.attach(1, facts("d0"), 5, 1, at(0));
  expect(cluster.attach(2, facts("d0"), 4, 1, at(1)).kind).toBe("refused");
  expect(cluster.get("d0")?.streamId).toBe(1);
  cluster.leave(1, at(2));
  expect(cluster.attach(3, facts("d0"), 4, 1, at(3)).kind).toBe("refused");
  expect(cluster.attach(4, facts("d0"), 5, 1, at(4)).kind).toBe("accepted");
});

test("the newest stream of a worker counts: the older one is told, and its last words change nothing", () => {
  const cluster = view();
  cluster.attach(1, facts("d0"), 5, 1, at(0));
  expect(cluster.attach(2, facts("d0"), 6, 1, at(1))).toEqual({ kind: "accepted", supersededStreamId: 1 });
  expect(cluster.report(1, 5, 2, load(), none, at(2)).kind).toBe("refused");
  expect(cluster.leave(1, at(2))).toBeUndefined();
  expect(cluster.get("d0")).toMatchObject({ epoch: 6, streamId: 2 });
});

test("a stream may start again with a new epoch, not with the same one or for another worker", () => {
  const cluster = view();
  cluster.attach(1, facts("d0"), 5, 1, at(0));
  expect(cluster.attach(1, facts("d0"), 6, 1, at(1))).toEqual({ kind: "accepted" });
  expect(cluster.report(1, 5, 2, load(), none, at(2)).kind).toBe("refused");
  cluster.attach(2, facts("d1"), 7, 1, at(3));
  expect(cluster.attach(2, facts("d1"), 7, 1, at(4)).kind).toBe("refused");
  cluster.attach(3, facts("d1"), 8, 1, at(5));
  expect(cluster.attach(3, facts("d2"), 9, 1, at(6)).kind).toBe("refused");
  expect(cluster.attach(4, facts("d3"), 1, 2, at(7)).kind).toBe("refused");
  expect(cluster.size).toBe(0);
});

test("silence makes a worker lost at the limit, not before; its next report brings it back", () => {
  const cluster = view();
  cluster.attach(1, facts("d0"), 5, 1, at(0));
  cluster.report(1, 5, 2, load(), none, at(100));
  expect(cluster.advance(at(5_099))).toEqual([]);
  expect(cluster.advance(at(5_100))).toEqual(["d0"]);
  expect(cluster.advance(at(5_200))).toEqual([]);
  const { version } = cluster;
  cluster.report(1, 5, 3, load(), none, at(5_300));
  expect(cluster.get("d0")?.isLost).toBe(false);
  expect(cluster.version).toBeGreaterThan(version);
});

test("a worker that left is remembered as one that may return, for a while", () => {
  const cluster = view();
  cluster.attach(1, facts("d0"), 5, 1, at(0));
  cluster.leave(1, at(10));
  cluster.advance(at(5_009));
  expect(cluster.departed().map((worker) => worker.workerId)).toEqual(["d0"]);
  cluster.advance(at(5_010));
  expect(cluster.departed()).toEqual([]);
});
