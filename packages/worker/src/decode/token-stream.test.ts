import { EventEmitter } from "node:events";
import { expect, test } from "vitest";
import { type GenerateCall, TokenStream } from "./token-stream.ts";

class SlowCall extends EventEmitter {
  readonly written: string[] = [];
  accepts = true;
  cancelled = false;
  destroyed = false;

  write(message: { kind: { case: string; value: { tokens?: { tokenId: number }[] } } }): boolean {
    const { tokens } = message.kind.value;
    this.written.push(tokens ? tokens.map((token) => token.tokenId).join(" ") : message.kind.case);
    return this.accepts;
  }
}

const immediate = () => new Promise((resolve) => setImmediate(resolve));
const token = (tokenId: number) => ({ tokenId, topLogprobs: [] });

test("tokens of one turn go together, and while the peer is slow they gather until it drains", async () => {
  const call = new SlowCall();
  const stream = new TokenStream(call as unknown as GenerateCall);
  stream.push(token(1));
  stream.push(token(2));
  await immediate();
  call.accepts = false;
  stream.push(token(3));
  await immediate();
  for (const tokenId of [4, 5]) stream.push(token(tokenId));
  await immediate();
  stream.push(token(6));
  await immediate();
  expect(call.written).toEqual(["1 2", "3"]);
  call.accepts = true;
  call.emit("drain");
  expect(call.written).toEqual(["1 2", "3", "4 5 6"]);
});

test("the end comes after every token, slow peer or not, and nothing is written to a peer that left", async () => {
  const call = new SlowCall();
  const stream = new TokenStream(call as unknown as GenerateCall);
  call.accepts = false;
  stream.accepted(1);
  stream.push(token(1));
  stream.finish({});
  await immediate();
  expect(call.written).toEqual(["accepted", "1", "finished"]);
  call.cancelled = true;
  stream.push(token(2));
  call.emit("drain");
  await immediate();
  expect(call.written).toHaveLength(3);
});
