import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ServerWritableStream } from "@grpc/grpc-js";
import type { Token } from "@kvasir/core";
import type {
  CachedTokensSchema,
  ChoiceFinishedSchema,
  GenerateFinishedSchema,
  GenerateRequest,
  GenerateResponseSchema,
} from "@kvasir/proto";
import { wireToken } from "../wire-token.ts";

export type GenerateCall = ServerWritableStream<GenerateRequest, MessageInitShape<typeof GenerateResponseSchema>>;

/**
 * Tokens on their way to the gateway. What was sampled until the event loop comes round goes into one message, and while the peer is
 * slow (`write` said false) tokens gather until `drain`: at most max_tokens of them, which bounds the memory.
 */
export class TokenStream {
  readonly #call: GenerateCall;
  #pending: { readonly token: Token; readonly choice: number }[] = [];
  #blocked = false;
  #queued = false;
  #cached: MessageInitShape<typeof CachedTokensSchema> | undefined;

  constructor(call: GenerateCall) {
    this.#call = call;
    call.on("drain", () => {
      this.#blocked = false;
      this.#flush();
    });
  }

  accepted(reserveMs: number): void {
    this.#write({ kind: { case: "accepted", value: { reserveMs } } });
  }

  progress(): void {
    this.#write({ kind: { case: "progress", value: {} } });
  }

  /** To be told with the first tokens. */
  tellCached(cached: MessageInitShape<typeof CachedTokensSchema>): void {
    this.#cached = cached;
  }

  push(token: Token, choice = 0): void {
    this.#pending.push({ token, choice });
    if (this.#queued || this.#blocked) return;
    this.#queued = true;
    flushSoon(this.#flushQueued);
  }

  /** One of several answers has ended; after its tokens. */
  choiceFinished(finished: MessageInitShape<typeof ChoiceFinishedSchema>): void {
    this.#blocked = false;
    this.#flush();
    this.#write({ kind: { case: "choiceFinished", value: finished } });
  }

  /** The last message, after all tokens; the stream is ended by the handler's return, which waits for what is buffered. */
  finish(finished: MessageInitShape<typeof GenerateFinishedSchema>): void {
    this.#blocked = false;
    this.#flush();
    this.#write({ kind: { case: "finished", value: finished } });
  }

  readonly #flushQueued = (): void => {
    this.#queued = false;
    this.#flush();
  };

  #flush(): void {
    if (this.#blocked || this.#pending.length === 0) return;
    const pending = this.#pending;
    this.#pending = [];
    for (const [choiceIndex, entries] of Map.groupBy(pending, ({ choice }) => choice)) {
      const tokens = entries.map(({ token }) => wireToken(token));
      const cached = this.#cached === undefined ? {} : { cached: this.#cached };
      this.#cached = undefined;
      this.#write({ kind: { case: "tokens", value: { tokens, choiceIndex, ...cached } } });
    }
  }

  #write(message: MessageInitShape<typeof GenerateResponseSchema>): void {
    if (this.#call.destroyed || this.#call.cancelled) return;
    if (!this.#call.write(message)) this.#blocked = true;
  }
}

/** One immediate for all streams of a step. */
let queue: (() => void)[] = [];

function flushSoon(flush: () => void): void {
  queue.push(flush);
  if (queue.length > 1) return;
  setImmediate(() => {
    const flushes = queue;
    queue = [];
    for (const flush of flushes) flush();
  });
}
