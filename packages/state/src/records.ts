import { z } from "zod";

const id = z.string().min(1).max(128);
const address = z.string().regex(/^(\[[^\]\s]+\]|[^\s:]+):\d{1,5}$/, "use host:port");

const workerRecord = z.object({
  workerId: id,
  role: z.enum(["prefill", "decode", "mixed"]),
  /** Incarnation of the worker's sidecar. */
  epoch: z.int().positive(),
  /** gRPC. */
  address,
  /** HTTP: /metrics, /ready, /debug/traces. */
  adminAddress: address,
  /** Served model name. */
  model: z.string().max(256),
  /** Layout fingerprint in hex. */
  fingerprint: z.string().regex(/^[0-9a-f]*$/),
  updatedAtUnixMs: z.number(),
});

const routerRecord = z.object({ routerId: id, address, adminAddress: address });

/** `address` is the HTTP address that clients use. */
const gatewayRecord = z.object({ gatewayId: id, address, adminAddress: address });

const storeRecord = z.object({
  storeId: id,
  address,
  adminAddress: address,
  model: z.string().max(256),
  /** Exact layout fingerprint in hex; empty as long as no worker has told it. */
  fingerprint: z.string().regex(/^[0-9a-f]*$/),
  /** Bytes of blocks that it holds, both tiers together: its share of all blocks. */
  capacityBytes: z.number().positive(),
});

export type WorkerRecord = Readonly<z.infer<typeof workerRecord>>;
export type RouterRecord = Readonly<z.infer<typeof routerRecord>>;
export type GatewayRecord = Readonly<z.infer<typeof gatewayRecord>>;
export type StoreRecord = Readonly<z.infer<typeof storeRecord>>;

export interface RecordByKind {
  readonly worker: WorkerRecord;
  readonly router: RouterRecord;
  readonly gateway: GatewayRecord;
  readonly store: StoreRecord;
}

export type RecordKind = keyof RecordByKind;

/** What a process says of itself; the time of its last refresh is added by the registration. */
export type RegisteredRecord<K extends RecordKind> = Omit<RecordByKind[K], "updatedAtUnixMs">;

export type RecordOutcome<K extends RecordKind> =
  | { readonly kind: "record"; readonly record: RecordByKind[K] }
  | { readonly kind: "foreign"; readonly message: string };

const SCHEMAS: { readonly [K in RecordKind]: z.ZodType<RecordByKind[K]> } = {
  worker: workerRecord,
  router: routerRecord,
  gateway: gatewayRecord,
  store: storeRecord,
};

export function idOfRecord<K extends RecordKind>(kind: K, record: RecordByKind[K]): string {
  const ids = record as Partial<Record<`${RecordKind}Id`, string>>;
  return ids[`${kind}Id`] ?? "";
}

/** Reads what is stored under a member's key. Anybody may write to Redis, so nothing in it is believed before it fits. */
export function recordFromText<K extends RecordKind>(kind: K, memberId: string, text: string): RecordOutcome<K> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return { kind: "foreign", message: "it is not JSON" };
  }
  const parsed = SCHEMAS[kind].safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    return { kind: "foreign", message: `${issue?.path.join(".") || "record"}: ${issue?.message ?? "wrong"}` };
  }
  const named = idOfRecord(kind, parsed.data);
  if (named !== memberId) return { kind: "foreign", message: `it names ${JSON.stringify(named)}` };
  return { kind: "record", record: parsed.data };
}
