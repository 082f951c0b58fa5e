import fc from "fast-check";
import { expect, test } from "vitest";
import type { Token } from "../scheduler/events.ts";
import { type Instant, NEVER } from "../time.ts";
import {
  advanceDecodeHandover,
  type DecodeHandoverEvent,
  isDecodeHandoverOver,
  newDecodeHandover,
} from "./decode-handover.ts";
import {
  advancePrefillHandover,
  isPrefillHandoverOver,
  newPrefillHandover,
  type PrefillHandoverEvent,
} from "./prefill-handover.ts";

const at = (value: number) => value as Instant;
const token: Token = { tokenId: 50, topLogprobs: [] };

function decode(...events: DecodeHandoverEvent[]) {
  let state = newDecodeHandover(at(10));
  const effects = events.flatMap((event) => {
    const step = advanceDecodeHandover(state, event, at(0));
    state = step.next;
    return step.effects;
  });
  return { state: state.kind, effects: effects.map((effect) => effect.kind) };
}

const reserved: DecodeHandoverEvent = { kind: "Reserved", requestDeadline: at(20) };
const ticket: DecodeHandoverEvent = { kind: "TicketReceived", leaseEnd: at(30) };
const frames = (complete: boolean): DecodeHandoverEvent => ({ kind: "FramesVerified", complete });
const first = (stopped: boolean): DecodeHandoverEvent => ({ kind: "FirstTokenReceived", token, stopped });

test("decode joins once token and KV are both there, in either order, and the client has the token before", () => {
  const expected = { state: "joined", effects: ["RequestPrefill", "OpenFetch", "SendFirstToken", "Join"] };
  expect(decode(reserved, ticket, frames(false), first(false), frames(true))).toEqual(expected);
  expect(decode(reserved, ticket, frames(true), first(false))).toEqual(expected);
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
    [[reserved, ticket, frames(true)], 30, "lease_expired"],
  ];
  for (const [events, deadline, reason] of cases) {
    let state = newDecodeHandover(at(10));
    for (const event of events) state = advanceDecodeHandover(state, event, at(0)).next;
    expect(advanceDecodeHandover(state, { kind: "TimePassed" }, at(deadline - 1)).effects).toEqual([]);
    const { effects } = advanceDecodeHandover(state, { kind: "TimePassed" }, at(deadline));
    expect(effects).toMatchObject([{ kind: "AbandonTransfer" }, { kind: "EndStream", error: { reason } }]);
  }
});

test("whatever happens to a decode hand-over, transfers end exactly once: joined or abandoned, and the stream ends at most once", () => {
  const event = fc.oneof(
    fc.constantFrom<DecodeHandoverEvent>(reserved, ticket, frames(false), frames(true), first(false), first(true)),
    fc.constantFrom<DecodeHandoverEvent>(
      { kind: "TimePassed" },
      { kind: "Cancelled" },
      { kind: "Failed", error: { reason: "unavailable", message: "gone" } },
    ),
  );
  fc.assert(
    fc.property(fc.array(fc.tuple(event, fc.nat(5)), { maxLength: 30 }), (events) => {
      let state = newDecodeHandover(at(10));
      let now = 0;
      const counts = new Map<string, number>();
      for (const [entry, elapsed] of [...events, [{ kind: "TimePassed" } as const, 1000] as const]) {
        now += elapsed;
        const step = advanceDecodeHandover(state, entry, at(now));
        state = step.next;
        for (const effect of step.effects) counts.set(effect.kind, (counts.get(effect.kind) ?? 0) + 1);
      }
      expect(isDecodeHandoverOver(state)).toBe(true);
      expect((counts.get("Join") ?? 0) + (counts.get("AbandonTransfer") ?? 0)).toBe(1);
      expect(counts.get("EndStream") ?? 0).toBe(counts.get("AbandonTransfer") ?? 0);
      for (const count of counts.values()) expect(count).toBe(1);
    }),
  );
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
