export { createMetrics, type GatewayMetrics } from "./metrics.ts";
export type { ServedModel } from "./prepare.ts";
export { RunningRequests } from "./running-requests.ts";
export { buildServer, type ServerDeps } from "./server.ts";
export { DecodeClients } from "./upstream/decode-clients.ts";
export type { Upstream } from "./upstream/generate.ts";
export { RouterLink } from "./upstream/router-link.ts";
