import { Metadata } from "@grpc/grpc-js";
import { type Context, context, propagation, type TextMapGetter, type TextMapSetter } from "@opentelemetry/api";

const SETTER: TextMapSetter<Metadata> = { set: (metadata, key, value) => metadata.set(key, value) };
const GETTER: TextMapGetter<Metadata> = {
  keys: (metadata) => Object.keys(metadata.getMap()),
  get: (metadata, key) => {
    const value = metadata.get(key)[0];
    return typeof value === "string" ? value : undefined;
  },
};

/** Metadata that carries the given (default: active) trace context. */
export function metadataFromContext(active: Context = context.active()): Metadata {
  const metadata = new Metadata();
  propagation.inject(active, metadata, SETTER);
  return metadata;
}

/** The caller's trace context, to start a server span in. */
export function contextFromMetadata(metadata: Metadata): Context {
  return propagation.extract(context.active(), metadata, GETTER);
}
