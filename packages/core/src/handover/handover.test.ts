import fc from "fast-check";
import { expect, test } from "vitest";
import type { Token } from "../scheduler/events.ts";
import { type Instant, NEVER, nanosFromMs } from "../time.ts";
import { advanceDecodeHandover, type DecodeHandoverEvent, newDecodeHandover } from "./decode-handover.ts";
import {
  advancePrefillHandover,
  isPrefillHandoverOver,
  newPrefillHandover,
  type PrefillHandoverEvent,
} from "./prefill-handover.ts";

const at = (value: number) => value as Instant;
const token: Token = { tokenId: 50, topLogprobs: [] };
const plan = { promptTokenCount: 4, tailTokenMax: 1, hitTailTokenMax: 1, fenceWithin: nanosFromMs(1) };

function decode(...events: DecodeHandoverEvent[]) {
  let state = newDecodeHandover(at(10));
  const effects = events.flatMap((event) => {
    const step = advanceDecodeHandover(state, event, plan, at(0));
    state = step.next;
    return step.effects;
  });
  return { state: state.kind, effects: effects.map((effect) => effect.kind) };
}

const reserved: Extract<DecodeHandoverEvent, { readonly kind: "Reserved" }> = {
  kind: "Reserved",
  heardBy: at(20),
  cachedTokenCount: 0,
};
const ticket: DecodeHandoverEvent = { kind: "TicketReceived", leaseEnd: at(30) };
const frames = (complete: boolean): DecodeHandoverEvent => ({
  kind: "FramesVerified",
  verifiedTokenCount: complete ? 4 : 2,
  progressBy: at(0),
});
const first = (stopped: boolean): DecodeHandoverEvent => ({ kind: "FirstTokenReceived", token, stopped });

test("decode joins once token and KV are both there, in either order, and the client has the token before", () => {
  const expected = { state: "joined", effects: ["RequestPrefill", "OpenFetch", "SendFirstToken", "Join"] };
  expect(decode(reserved, ticket, frames(false), first(false), frames(true))).toEqual(expected);
  expect(decode(reserved, ticket, frames(true), first(false))).toEqual(expected);
});

test("of what is cached nothing is fetched, and when nearly all is, nobody is asked", () => {
  const cached = (cachedTokenCount: number): DecodeHandoverEvent => ({ ...reserved, cachedTokenCount });
  let state = newDecodeHandover(at(10));
  state = advanceDecodeHandover(state, cached(2), plan, at(0)).next;
  expect(advanceDecodeHandover(state, ticket, plan, at(0)).effects).toEqual([
    { kind: "OpenFetch", verifiedTokenCount: 2 },
  ]);
  const hit = advanceDecodeHandover(newDecodeHandover(at(10)), cached(3), plan, at(0));
  expect(hit.next).toMatchObject({ kind: "localHit", deadline: NEVER });
  expect(hit.effects).toEqual([{ kind: "ComputeTail", verifiedTokenCount: 3, token: undefined }]);
  // A short prompt of which nothing is cached is for a prefill worker all the same.
  expect(
    advanceDecodeHandover(newDecodeHandover(at(10)), reserved, { ...plan, promptTokenCount: 1 }, at(0)).effects,
  ).toEqual([{ kind: "RequestPrefill" }]);
});

test("a final first token ends everything without a join", () => {
  expect(decode(reserved, ticket, first(true), frames(true))).toEqual({
    state: "finished",
    effects: ["RequestPrefill", "OpenFetch", "SendFirstToken", "AbandonTransfer", "EndStream"],
  });
});

test("each waiting state of decode fails at its own deadline, for its own reason", () => {
  const cases: [DecodeHandoverEvent[], number, string][] = [
    [[], 10, "overloaded"],
    [[reserved], 20, "unavailable"],
    [[reserved, ticket], 30, "lease_expired"],
    [[reserved, ticket, frames(false), first(false)], 30, "lease_expired"],
  ];
  for (const [events, deadline, reason] of cases) {
    let state = newDecodeHandover(at(10));
    for (const event of events) state = advanceDecodeHandover(state, event, plan, at(0)).next;
    expect(advanceDecodeHandover(state, { kind: "TimePassed" }, plan, at(deadline - 1)).effects).toEqual([]);
    const { effects } = advanceDecodeHandover(state, { kind: "TimePassed" }, plan, at(deadline));
    expect(effects).toMatchObject([{ kind: "AbandonTransfer" }, { kind: "EndStream", error: { reason } }]);
  }
});

const lost: DecodeHandoverEvent = { kind: "PeerLost", error: { reason: "unavailable", message: "gone" } };
const fenced: DecodeHandoverEvent = { kind: "Fenced", heardBy: at(25) };

test("a prefill worker that says nothing is left soon; one that heard may take longer for its ticket", () => {
  const heard: DecodeHandoverEvent = { kind: "RequestHeard", ticketBy: at(40) };
  const stateOf = (...events: DecodeHandoverEvent[]) =>
    events.reduce(
      (state, event) => advanceDecodeHandover(state, event, plan, at(25)).next,
      newDecodeHandover(at(10), 2),
    );
  expect(stateOf(reserved, { kind: "TimePassed" }).kind).toBe("fencing");
  expect(stateOf(reserved, heard, { kind: "TimePassed" })).toMatchObject({ kind: "requesting", deadline: at(40) });
  expect(stateOf(reserved, heard, ticket, heard)).toMatchObject({ kind: "ticketed", deadline: at(30) });
});

test("a short rest of a prompt is computed here when the prefill worker is lost, with the token that the client has", () => {
  const before = [reserved, ticket, first(false)] as const;
  const almost: DecodeHandoverEvent = { kind: "FramesVerified", verifiedTokenCount: 3, progressBy: at(0) };
  expect(decode(...before, almost, lost, almost, fenced)).toEqual({
    state: "tail",
    effects: ["RequestPrefill", "OpenFetch", "SendFirstToken", "StopTransfer", "ComputeTail"],
  });
  // Without any rest it is the first token that is missing.
  expect(decode(reserved, ticket, frames(true), lost, fenced).state).toBe("tail");
});

test("a long rest comes from the next prefill worker, once nothing writes any more, and only what is missing", () => {
  let state = newDecodeHandover(at(10), 2);
  const effects = [
    reserved,
    ticket,
    first(false),
    frames(false),
    lost,
    ticket,
    fenced,
    ticket,
    first(false),
    frames(true),
  ].flatMap((event) => {
    const step = advanceDecodeHandover(state, event, plan, at(0));
    state = step.next;
    return step.effects;
  });
  expect(effects.map((effect) => effect.kind)).toEqual([
    ...["RequestPrefill", "OpenFetch", "SendFirstToken", "StopTransfer"],
    ...["RequestPrefill", "OpenFetch", "Join"],
  ]);
  expect(effects.at(-2)).toEqual({ kind: "OpenFetch", verifiedTokenCount: 2 });
});

test("without another prefill worker a long rest fails, as does what no other worker would mend", () => {
  expect(decode(reserved, ticket, frames(false), lost).state).toBe("failed");
  const defect: DecodeHandoverEvent = { kind: "PeerLost", error: { reason: "internal", message: "a defect" } };
  expect(decode(reserved, ticket, frames(true), defect).state).toBe("failed");
});

test("heartbeats move the end of a lease, on both sides, and never back", () => {
  let pulling = newDecodeHandover(at(10));
  for (const event of [reserved, ticket, { kind: "LeaseRenewed", leaseEnd: at(90) } as const]) {
    pulling = advanceDecodeHandover(pulling, event, plan, at(0)).next;
  }
  pulling = advanceDecodeHandover(pulling, { kind: "LeaseRenewed", leaseEnd: at(50) }, plan, at(0)).next;
  expect(pulling.deadline).toBe(at(90));
  // The token is there: from here on it is frames that count.
  for (const event of [first(false), { kind: "LeaseRenewed", leaseEnd: at(200) } as const]) {
    pulling = advanceDecodeHandover(pulling, event, plan, at(0)).next;
  }
  expect(pulling.deadline).toBe(at(90));
  const progress: DecodeHandoverEvent = { kind: "FramesVerified", verifiedTokenCount: 1, progressBy: at(120) };
  pulling = advanceDecodeHandover(pulling, progress, plan, at(0)).next;
  expect(pulling.deadline).toBe(at(120));
  let pinned = newPrefillHandover(at(10));
  for (const event of [
    { kind: "BlocksTaken", leaseEnd: at(30) },
    { kind: "LeaseRenewed", leaseEnd: at(70) },
    { kind: "LeaseRenewed", leaseEnd: at(60) },
  ] as const) {
    pinned = advancePrefillHandover(pinned, event, at(0)).next;
  }
  expect(pinned.deadline).toBe(at(70));
});

test("what was computed waits for another decode worker, but not long", () => {
  let state = newPrefillHandover(at(10));
  const apply = (event: PrefillHandoverEvent, now = 0) => {
    const step = advancePrefillHandover(state, event, at(now));
    state = step.next;
    return step.effects.map((effect) => effect.kind);
  };
  apply({ kind: "BlocksTaken", leaseEnd: at(30) });
  apply({ kind: "PeerLost", adoptBy: at(15) });
  expect(state.deadline).toBe(at(15));
  apply({ kind: "PeerAdopted" });
  expect(state.deadline).toBe(at(30));
  apply({ kind: "PeerLost", adoptBy: at(20) });
  expect(apply({ kind: "TimePassed" }, 20)).toEqual(["FreeBlocks", "EndStream"]);
  expect(state.kind).toBe("closed");
});

test("prefill publishes before the ticket, and frees after received", () => {
  let state = newPrefillHandover(at(10));
  const seen: string[] = [];
  const events: PrefillHandoverEvent[] = [
    { kind: "BlocksTaken", leaseEnd: at(30) },
    { kind: "ExportOpened" },
    { kind: "StepPlanned" },
    { kind: "TokenSampled", token, stopped: false },
    { kind: "PeerReceived" },
    { kind: "PeerClosed" },
  ];
  for (const event of events) {
    const step = advancePrefillHandover(state, event, at(0));
    state = step.next;
    seen.push(...step.effects.map((effect) => effect.kind), state.kind);
  }
  expect(seen).toEqual(
    ["OpenExport", "publishing", "SendTicket", "ticketed", "computing", "SendFirstToken", "ready"].concat([
      "FreeBlocks",
      "EndStream",
      "received",
      "received",
    ]),
  );
});

test("whatever happens to a prefill hand-over, blocks are freed and the stream is ended exactly once", () => {
  const event = fc.constantFrom<PrefillHandoverEvent>(
    { kind: "BlocksTaken", leaseEnd: at(30) },
    { kind: "ExportOpened" },
    { kind: "StepPlanned" },
    { kind: "TokenSampled", token, stopped: true },
    { kind: "PeerReceived" },
    { kind: "PeerClosed" },
    { kind: "Failed", error: { reason: "unavailable", message: "gone" } },
    { kind: "TimePassed" },
  );
  fc.assert(
    fc.property(fc.array(fc.tuple(event, fc.nat(5)), { maxLength: 30 }), (events) => {
      let state = newPrefillHandover(at(10));
      let now = 0;
      const kinds: string[] = [];
      for (const [entry, elapsed] of [...events, [{ kind: "TimePassed" } as const, 1000] as const]) {
        now += elapsed;
        const step = advancePrefillHandover(state, entry, at(now));
        state = step.next;
        kinds.push(...step.effects.map((effect) => effect.kind));
      }
      expect(isPrefillHandoverOver(state) && state.deadline === NEVER).toBe(true);
      expect(kinds.filter((kind) => kind === "FreeBlocks")).toHaveLength(1);
      expect(kinds.filter((kind) => kind === "EndStream")).toHaveLength(1);
      if (kinds.includes("SendTicket")) expect(kinds.indexOf("OpenExport")).toBeLessThan(kinds.indexOf("SendTicket"));
    }),
  );
});
