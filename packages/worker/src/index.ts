export { AttachClient } from "./attach/attach-client.ts";
export type { AttachState } from "./attach/attach-stream.ts";
export type { ToldCache } from "./attach/cache-teller.ts";
export { type AuditedBlocks, auditBlocks } from "./audit.ts";
export { now } from "./clock.ts";
export { type LentBlocks, lendingService } from "./lending/lending-service.ts";
export type { Log } from "./log.ts";
export { PeerClients } from "./peer-clients.ts";
export { runWorker } from "./run-worker.ts";
export {
  flagsFrom,
  type LaunchSidecar,
  type Sidecar,
  type SidecarCommand,
  sidecarLauncher,
  startSidecar,
} from "./sidecar/sidecar-process.ts";
export { SIDECAR_OWNER_FLAGS } from "./sidecar-owner-flags.ts";
export { spanRecordFromSidecar } from "./sidecar-spans.ts";
export { socketPath } from "./socket-path.ts";
export { isSignedBy, signTicket, TICKET_KEY_BYTES } from "./ticket.ts";
export { endSpan, startSpan } from "./tracing.ts";
export { type Role, Worker, type WorkerOptions } from "./worker.ts";
