import type { DescService, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { type CallOptions, Client, type Metadata } from "@grpc/grpc-js";
import { type Duplex, deserializer, methodPath, type Readable, serializer } from "./binding.ts";
import { CHANNEL_OPTIONS } from "./channel-options.ts";
import { errorFromService } from "./errors.ts";
import { metadataFromContext } from "./trace-context.ts";
import { PLAIN, type Transport } from "./transport.ts";

export interface CallSettings {
  /** Relative deadline of the whole call; absent: none. */
  readonly deadlineMs?: number;
  /** Absent: the active trace context's. */
  readonly metadata?: Metadata;
  readonly signal?: AbortSignal;
}

type UnaryClient<S extends DescService> = {
  readonly [K in keyof S["method"]]: S["method"][K]["methodKind"] extends "unary"
    ? (
        request: MessageInitShape<S["method"][K]["input"]>,
        settings?: CallSettings,
      ) => Promise<MessageShape<S["method"][K]["output"]>>
    : S["method"][K]["methodKind"] extends "server_streaming"
      ? (request: MessageInitShape<S["method"][K]["input"]>, settings?: CallSettings) => Readable<S["method"][K]>
      : S["method"][K]["methodKind"] extends "bidi_streaming"
        ? (settings?: CallSettings) => Duplex<S["method"][K]>
        : never;
};

/** Typed calls plus the life of the channel. Streams are grpc-js streams: `for await`, `write`, `cancel`. */
export type RpcClient<S extends DescService> = UnaryClient<S> & { readonly channel: Client };

/**
 * A client of one service at `address` (`host:port` or `unix:/path`). Unary errors are rejected as `KvasirError`; stream errors are
 * raw, pass them through `errorFromService`.
 */
export function createClient<S extends DescService>(
  service: S,
  address: string,
  transport: Transport = PLAIN,
): RpcClient<S> {
  const channel = new Client(address, transport.credentialsTo(service.typeName, address), CHANNEL_OPTIONS);
  const methods: Record<string, unknown> = { channel };
  for (const method of service.methods) {
    const path = methodPath(method);
    const serialize = serializer(method.input);
    const deserialize = deserializer(method.output);
    switch (method.methodKind) {
      case "unary":
        methods[method.localName] = (request: MessageInitShape<typeof method.input>, settings: CallSettings = {}) =>
          new Promise((resolve, reject) => {
            const call = channel.makeUnaryRequest(
              path,
              serialize,
              deserialize,
              request,
              settings.metadata ?? metadataFromContext(),
              callOptions(settings),
              (error, response) => (error ? reject(errorFromService(error)) : resolve(response)),
            );
            onAbort(settings.signal, () => call.cancel());
          });
        break;
      case "server_streaming":
        methods[method.localName] = (request: MessageInitShape<typeof method.input>, settings: CallSettings = {}) => {
          const call = channel.makeServerStreamRequest(
            path,
            serialize,
            deserialize,
            request,
            settings.metadata ?? metadataFromContext(),
            callOptions(settings),
          );
          onAbort(settings.signal, () => call.cancel());
          return call;
        };
        break;
      case "bidi_streaming":
        methods[method.localName] = (settings: CallSettings = {}) => {
          const call = channel.makeBidiStreamRequest(
            path,
            serialize,
            deserialize,
            settings.metadata ?? metadataFromContext(),
            callOptions(settings),
          );
          onAbort(settings.signal, () => call.cancel());
          return call;
        };
        break;
      case "client_streaming":
        throw new Error(`${path}: client streaming is not used in this project`);
    }
  }
  return methods as RpcClient<S>;
}

function callOptions(settings: CallSettings): CallOptions {
  return settings.deadlineMs === undefined ? {} : { deadline: Date.now() + settings.deadlineMs };
}

function onAbort(signal: AbortSignal | undefined, cancel: () => void): void {
  if (signal === undefined) return;
  if (signal.aborted) cancel();
  else signal.addEventListener("abort", cancel, { once: true });
}
