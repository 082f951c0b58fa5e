import type { ChannelOptions } from "@grpc/grpc-js";

const MESSAGE_BYTES_MAX = 64 * 1024 * 1024;

/**
 * One set of options for every channel and server of the control plane. Prompts are the largest messages (4 bytes a token), KV never
 * passes here. Keep-alive finds a silent peer in 10 s + 5 s; a reconnect is tried soon, since peers restart on the same address.
 */
export const CHANNEL_OPTIONS: ChannelOptions = {
  "grpc.max_receive_message_length": MESSAGE_BYTES_MAX,
  "grpc.max_send_message_length": MESSAGE_BYTES_MAX,
  "grpc.keepalive_time_ms": 10_000,
  "grpc.keepalive_timeout_ms": 5_000,
  "grpc.keepalive_permit_without_calls": 0,
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1_000,
  "grpc.enable_http_proxy": 0,
  "grpc.use_local_subchannel_pool": 1,
};
