import {
  create,
  type DescMessage,
  type DescMethod,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import type {
  ClientDuplexStream,
  ClientReadableStream,
  MethodDefinition,
  ServerDuplexStream,
  ServerUnaryCall,
  ServerWritableStream,
  ServiceDefinition,
} from "@grpc/grpc-js";

/** Methods of a generated service by their local (camelCase) name. */
type Methods<S extends DescService> = S["method"];
type Input<M extends DescMethod> = MessageShape<M["input"]>;
type Output<M extends DescMethod> = MessageShape<M["output"]>;

/** What a server implements, one function per method. Messages are complete protobuf-es messages on both sides. */
export type Implementation<S extends DescService> = {
  readonly [K in keyof Methods<S>]: Methods<S>[K]["methodKind"] extends "unary"
    ? (
        request: Input<Methods<S>[K]>,
        call: ServerUnaryCall<unknown, unknown>,
      ) => Promise<MessageInitShape<Methods<S>[K]["output"]>>
    : Methods<S>[K]["methodKind"] extends "server_streaming"
      ? (
          request: Input<Methods<S>[K]>,
          call: ServerWritableStream<Input<Methods<S>[K]>, MessageInitShape<Methods<S>[K]["output"]>>,
        ) => Promise<void>
      : Methods<S>[K]["methodKind"] extends "bidi_streaming"
        ? (call: ServerDuplexStream<Input<Methods<S>[K]>, MessageInitShape<Methods<S>[K]["output"]>>) => Promise<void>
        : never;
};

/** A duplex stream that takes message initialisers and gives messages. */
export type Duplex<M extends DescMethod> = ClientDuplexStream<MessageInitShape<M["input"]>, Output<M>>;
export type Readable<M extends DescMethod> = ClientReadableStream<Output<M>>;

/** grpc-js needs serialisers per method; generated descriptors have all it takes. */
export function serviceDefinition(service: DescService): ServiceDefinition {
  const definition: Record<string, MethodDefinition<unknown, unknown>> = {};
  for (const method of service.methods) {
    definition[method.localName] = {
      path: methodPath(method),
      requestStream: method.methodKind === "client_streaming" || method.methodKind === "bidi_streaming",
      responseStream: method.methodKind === "server_streaming" || method.methodKind === "bidi_streaming",
      ...codec("request", method.input),
      ...codec("response", method.output),
    } as MethodDefinition<unknown, unknown>;
  }
  return definition;
}

export function methodPath(method: DescMethod): string {
  return `/${method.parent.typeName}/${method.name}`;
}

export function serializer<D extends DescMessage>(schema: D): (value: MessageInitShape<D>) => Buffer {
  return (value) => {
    const bytes = toBinary(schema, create(schema, value));
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  };
}

export function deserializer<D extends DescMessage>(schema: D): (bytes: Buffer) => MessageShape<D> {
  return (bytes) => fromBinary(schema, bytes);
}

function codec(side: "request" | "response", schema: DescMessage): object {
  return { [`${side}Serialize`]: serializer(schema), [`${side}Deserialize`]: deserializer(schema) };
}
