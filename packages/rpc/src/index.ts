export type { Duplex, Implementation, Readable } from "./binding.ts";
export { serviceDefinition } from "./binding.ts";
export { CHANNEL_OPTIONS } from "./channel-options.ts";
export { type CallSettings, createClient, type RpcClient } from "./client.ts";
export { ERROR_METADATA_KEY, errorFromService, isTyped, statusFromError } from "./errors.ts";
export { messages } from "./messages.ts";
export { createServer, type RpcServer } from "./server.ts";
export { contextFromMetadata, metadataFromContext } from "./trace-context.ts";
