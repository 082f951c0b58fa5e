export type { Leadership, LeadershipOptions } from "./leadership.ts";
export { PIN_MAX, type PinBook, type PinRecord } from "./pins.ts";
export type {
  GatewayRecord,
  RecordByKind,
  RecordKind,
  RegisteredRecord,
  RouterRecord,
  StoreRecord,
  WorkerRecord,
} from "./records.ts";
export { type StateLog, withoutPassword } from "./redis-connection.ts";
export { connectState, type Registration, type State, type StateOptions } from "./state.ts";
