export { type AuditedBlocks, auditBlocks } from "./audit.ts";
export { runWorker } from "./run-worker.ts";
export { type LaunchSidecar, type Sidecar, type SidecarCommand, sidecarLauncher } from "./sidecar/sidecar-process.ts";
export { isSignedBy, signTicket, TICKET_KEY_BYTES } from "./ticket.ts";
export { type Role, Worker, type WorkerOptions } from "./worker.ts";
