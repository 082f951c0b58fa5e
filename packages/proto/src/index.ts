/** Generated protobuf types of every plane. Regenerate with `buf generate`; `npm run check` compares. */
export * from "./gen/kvasir/common/v1/common_pb.js";
export * from "./gen/kvasir/kernel/v1/kernel_service_pb.js";
export * from "./gen/kvasir/kernel/v1/store_service_pb.js";
export * from "./gen/kvasir/kvstore/v1/cache_feed_service_pb.js";
export * from "./gen/kvasir/kvstore/v1/lending_service_pb.js";
export * from "./gen/kvasir/router/v1/router_service_pb.js";
export * from "./gen/kvasir/transfer/v1/transfer_service_pb.js";
export * from "./gen/kvasir/worker/v1/worker_service_pb.js";
