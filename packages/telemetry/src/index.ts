export {
  type AdminAnswer,
  type AdminRequest,
  type AdminServer,
  type AdminServerOptions,
  answerAdmin,
  jsonAnswer,
  type Readiness,
  startAdminServer,
} from "./admin-server.ts";
export { type Attempt, linkToFailed, startAttempt } from "./attempt-span.ts";
export { exposeCertificateExpiry } from "./certificate-expiry.ts";
export { FineClock } from "./fine-clock.ts";
export { failSpan, inSpan } from "./in-span.ts";
export { isTraceId, type SpanRecord, spanRecordFromJson } from "./span-record.ts";
export { startTelemetry, type Telemetry, type TelemetryOptions } from "./telemetry.ts";
export { renderTimeline } from "./timeline.ts";
