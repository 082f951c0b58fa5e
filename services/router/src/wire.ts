import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  BLOCK_HASH_BYTES,
  type HolderEvent,
  type Instant,
  type KvAccuracy,
  KvasirError,
  type MeasuredLink,
  type Medium,
  nanosFromMs,
  type Objectives,
  type PlacementDecision,
  type PrefixFetchPlan,
  type PrefixHolder,
  type PromptHashes,
  type ReportedLoad,
  type RequestOutcome,
  type RequestShape,
  type ServiceClass,
  type StepCost,
  type StoreFacts,
  type WorkerFacts,
  type WorkerRole,
} from "@kvasir/core";
import {
  type CacheEvent,
  CacheMedium,
  KvDtype,
  type PlaceFinished,
  PlacementMode,
  type PlacementSchema,
  type PlaceStart,
  type StoreHello,
  KvAccuracy as WireAccuracy,
  ServiceClass as WireClass,
  type MeasuredLink as WireLink,
  type PromptHashes as WirePromptHashes,
  WorkerRole as WireRole,
  type WorkerHello,
  type WorkerLoad,
  type WorkerLoadSchema,
} from "@kvasir/proto";

const TEXT_LENGTH_MAX = 256;
const KEY_BYTES_MAX = 32;
/** A tenant's weight is at most this, and at least one over it. */
const WEIGHT_MAX = 1_000;
/** Prefill workers named beside the one that is placed on. */
const OTHER_PREFILLS_MAX = 2;
/** Layouts of one model whose hashes are looked up; a cluster has one, or two while it is upgraded. */
const LAYOUTS_MAX = 8;
/** Links taken of one load; a worker tells as many at most. */
const LINKS_MAX = 32;
const MEDIA_BY_WIRE = new Map<CacheMedium, Medium>([
  [CacheMedium.DEVICE, "device"],
  [CacheMedium.HOST, "host"],
  [CacheMedium.STORE, "store"],
  [CacheMedium.DISK, "disk"],
]);
const CLASSES = new Map<WireClass, ServiceClass>([
  [WireClass.PRIORITY, "priority"],
  [WireClass.DEFAULT, "default"],
  [WireClass.FLEX, "flex"],
]);
const WIRE_CLASSES: Readonly<Record<ServiceClass, WireClass>> = {
  priority: WireClass.PRIORITY,
  default: WireClass.DEFAULT,
  flex: WireClass.FLEX,
};
const ACCURACIES = new Map<WireAccuracy, KvAccuracy>([
  [WireAccuracy.NEAR, "near"],
  [WireAccuracy.FAST, "fast"],
]);
const ROLES = new Map<WireRole, WorkerRole>([
  [WireRole.PREFILL, "prefill"],
  [WireRole.DECODE, "decode"],
  [WireRole.MIXED, "mixed"],
]);
const DTYPES = new Map<KvDtype, { readonly name: WorkerFacts["kvDtype"]; readonly byteCount: number }>([
  [KvDtype.F32, { name: "f32", byteCount: 4 }],
  [KvDtype.F16, { name: "f16", byteCount: 2 }],
  [KvDtype.BF16, { name: "bf16", byteCount: 2 }],
]);

/** What a worker says of itself, checked: a wrong hello must not make a wrong placement. */
export function factsFromHello(hello: WorkerHello): WorkerFacts {
  const role = ROLES.get(hello.role);
  const { layout } = hello;
  if (role === undefined) throw wrong("hello.role", `role is ${hello.role}; use PREFILL, DECODE or MIXED`);
  requireText("hello.worker_id", hello.workerId);
  requireText("hello.address", hello.address);
  requireText("hello.model", hello.model);
  if (layout === undefined) throw wrong("hello.layout", "the KV layout is missing");
  const dtype = DTYPES.get(layout.dtype);
  if (dtype === undefined) throw wrong("hello.layout.dtype", `dtype is ${layout.dtype}; use F32, F16 or BF16`);
  if (![16, 32, 64].includes(layout.blockSize)) {
    throw wrong("hello.layout.block_size", `block_size is ${layout.blockSize}; use 16, 32 or 64`);
  }
  if (layout.fingerprint.length !== 16) {
    throw wrong("hello.layout.fingerprint", `the fingerprint has ${layout.fingerprint.length} bytes; it has 16`);
  }
  if (hello.blockCount < 1) throw wrong("hello.block_count", "the pool has no blocks");
  if (hello.contextLength < 1) throw wrong("hello.context_length", "the context holds no token");
  const { modelRevision, layerCount, kvHeadCount, headSize, rope } = layout;
  return {
    workerId: hello.workerId,
    role,
    address: hello.address,
    model: hello.model,
    fingerprint: Buffer.from(layout.fingerprint).toString("hex"),
    exactFingerprint: Buffer.from(layout.exactFingerprint).toString("hex"),
    kvModel: { modelRevision, layerCount, kvHeadCount, headSize, rope },
    kvDtype: dtype.name,
    blockSize: layout.blockSize,
    kvBytesPerToken: 2 * layerCount * kvHeadCount * headSize * dtype.byteCount,
    blockCount: hello.blockCount,
    contextLength: hello.contextLength,
    ...transferAddressFrom("hello.transfer_address", hello.transferAddress),
  };
}

/** What a store says of itself, checked. */
export function storeFactsFromHello({ storeId, address, model, layout, transferAddress }: StoreHello): StoreFacts {
  requireText("store_hello.store_id", storeId);
  requireText("store_hello.address", address);
  requireText("store_hello.model", model);
  if (layout === undefined) throw wrong("store_hello.layout", "the KV layout is missing");
  const { blockSize } = layout;
  if (![16, 32, 64].includes(blockSize)) {
    throw wrong("store_hello.layout.block_size", `block_size is ${blockSize}; use 16, 32 or 64`);
  }
  const exactFingerprint = Buffer.from(layout.exactFingerprint).toString("hex");
  const known = transferAddressFrom("store_hello.transfer_address", transferAddress);
  return { workerId: storeId, address, model, exactFingerprint, blockSize, ...known };
}

/** Empty: nobody tells of links from there. */
function transferAddressFrom(field: string, transferAddress: string): { readonly transferAddress?: string } {
  if (transferAddress === "") return {};
  requireText(field, transferAddress);
  return { transferAddress };
}

/** Numbers that cannot be, such as a speed of NaN, count as not measured. */
export function loadFromWire(load: WorkerLoad): ReportedLoad {
  return {
    freeBlockCount: load.freeBlocks,
    runningCount: load.running,
    waitingCount: load.waiting,
    queuedPromptTokenCount: load.queuedPromptTokens,
    contextTokenCount: Number(load.contextTokens),
    prefillTokensPerSecond: measured(load.prefillTokensPerSecond),
    decodeStepMs: measured(load.decodeStepMs),
    isDraining: load.draining,
    ...costFromWire(load),
  };
}

/** What a worker measured of links; one with a number that cannot be was not measured. Who allows more loss waits no longer than who allows less. */
export function linksFromWire({ links }: WorkerLoad, now: Instant): readonly MeasuredLink[] {
  return links.slice(0, LINKS_MAX).flatMap((link) => measuredLink(link, now) ?? []);
}

function measuredLink(
  { source, exactBytesPerSecond, nearBytesPerSecond, fastBytesPerSecond, ageMs }: WireLink,
  now: Instant,
): MeasuredLink | undefined {
  const exact = measured(exactBytesPerSecond) / 1e3;
  if (exact === 0 || source === "" || source.length > TEXT_LENGTH_MAX) return undefined;
  const near = Math.max(exact, measured(nearBytesPerSecond) / 1e3);
  const fast = Math.max(near, measured(fastBytesPerSecond) / 1e3);
  return { source, measuredAt: (now - nanosFromMs(ageMs)) as Instant, rates: { exact, near, fast } };
}

/** A cost with a number that cannot be counts as not measured. */
function costFromWire({ stepCost }: WorkerLoad): { stepCost?: StepCost } {
  if (stepCost === undefined) return {};
  const { fixedMs, promptStepMs, promptTokenMs, attentionMs, decodeMs, contextTokenMs } = stepCost;
  const cost = { fixedMs, promptStepMs, promptTokenMs, attentionMs, decodeMs, contextTokenMs };
  return Object.values(cost).every((value) => Number.isFinite(value) && value >= 0) ? { stepCost: cost } : {};
}

export function wireFromLoad(load: ReportedLoad): MessageInitShape<typeof WorkerLoadSchema> {
  return {
    freeBlocks: load.freeBlockCount,
    running: load.runningCount,
    waiting: load.waitingCount,
    queuedPromptTokens: load.queuedPromptTokenCount,
    contextTokens: BigInt(load.contextTokenCount),
    prefillTokensPerSecond: load.prefillTokensPerSecond,
    decodeStepMs: load.decodeStepMs,
    draining: load.isDraining,
    ...(load.stepCost === undefined ? {} : { stepCost: load.stepCost }),
  };
}

export function requestFromStart(start: PlaceStart): RequestShape {
  requireText("start.request_id", start.requestId);
  requireText("start.model", start.model);
  const { length } = start.tenantScope;
  if (length !== 0 && length !== 16)
    throw wrong("start.tenant_scope", `the tenant scope has ${length} bytes; it has 16`);
  if (start.tenant.length !== 0 && start.tenant.length !== 16)
    throw wrong("start.tenant", `the tenant has ${start.tenant.length} bytes; it has 16`);
  for (const [field, key] of [
    ["session_key", start.sessionKey],
    ["prompt_class", start.promptClass],
  ] as const) {
    if (key.length > KEY_BYTES_MAX)
      throw wrong(`start.${field}`, `${field} has ${key.length} bytes; send at most ${KEY_BYTES_MAX}`);
  }
  const { model, promptTokenCount, maxTokens, choiceCount } = start;
  const objectives = objectivesFromStart(start);
  return {
    model,
    promptTokenCount,
    maxTokens,
    choiceCount: Math.max(1, choiceCount),
    tenant: hex(start.tenant.length > 0 ? start.tenant : start.tenantScope),
    tenantWeight: weightFromWire(start.tenantWeight),
    serviceClass: CLASSES.get(start.serviceClass) ?? "default",
    kvAccuracy: ACCURACIES.get(start.kvAccuracy) ?? "exact",
    priority: start.priority,
    ...(start.sessionKey.length > 0 ? { sessionId: hex(start.sessionKey) } : {}),
    ...(start.promptClass.length > 0 ? { promptClass: hex(start.promptClass) } : {}),
    promptHashes: start.promptHashes
      .slice(0, LAYOUTS_MAX)
      .map((entry) => promptHashesFromWire(entry, promptTokenCount)),
    ...(objectives === undefined ? {} : { objectives }),
  };
}

/** What a request's gateway says of its answers; more than was asked for is not believed. */
export function outcomeFromFinished(
  { outputTokenCount, tbtMs }: PlaceFinished,
  { maxTokens, choiceCount = 1 }: RequestShape,
): RequestOutcome {
  return { outputTokenCount: Math.min(outputTokenCount, maxTokens * choiceCount), tbtMs: measured(tbtMs) };
}

/** A weight that cannot be counts as 1, one beyond all measure as the most. */
function weightFromWire(weight: number): number {
  return Math.min(Math.max(measured(weight) || 1, 1 / WEIGHT_MAX), WEIGHT_MAX);
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}

function promptHashesFromWire(
  { exactFingerprint, blockSize, hashes }: WirePromptHashes,
  promptTokenCount: number,
): PromptHashes {
  if (
    blockSize < 1 ||
    hashes.length % BLOCK_HASH_BYTES !== 0 ||
    hashes.length * blockSize > promptTokenCount * BLOCK_HASH_BYTES
  ) {
    const message = `${hashes.length} bytes of hashes do not fit ${promptTokenCount} tokens in blocks of ${blockSize}; send ${BLOCK_HASH_BYTES} for each full block`;
    throw wrong("start.prompt_hashes", message);
  }
  return { fingerprint: Buffer.from(exactFingerprint).toString("hex"), blockSize, hashes };
}

/** What a worker says of its cache, checked. */
export function cacheChangeFromWire(epoch: number, { sequence, medium, kind }: CacheEvent): HolderEvent {
  const where = MEDIA_BY_WIRE.get(medium);
  if (where === undefined) throw wrong("cache.medium", `medium is ${medium}; use DEVICE, HOST, STORE or DISK`);
  const common = { epoch, sequence: safeNumber("cache.sequence", sequence), medium: where };
  switch (kind.case) {
    case "stored":
      return { ...common, kind: "BlocksStored", hashes: wholeHashes("cache.stored", kind.value) };
    case "removed":
      return { ...common, kind: "BlocksRemoved", hashes: wholeHashes("cache.removed", kind.value) };
    case "snapshot": {
      const { part, isLast, hashes } = kind.value;
      return { ...common, kind: "SnapshotPart", part, isLast, hashes: wholeHashes("cache.snapshot", hashes) };
    }
    case undefined:
      throw wrong("cache.kind", "the event is empty; send stored, removed or snapshot");
  }
}

function wholeHashes(field: string, hashes: Uint8Array): Uint8Array {
  if (hashes.length % BLOCK_HASH_BYTES === 0) return hashes;
  throw wrong(field, `${hashes.length} bytes are not whole hashes of ${BLOCK_HASH_BYTES}`);
}

function objectivesFromStart({ ttftTargetMs, tbtTargetMs, mayBeLate }: PlaceStart): Objectives | undefined {
  const ttftMs = measured(ttftTargetMs);
  const tbtMs = measured(tbtTargetMs);
  if (ttftMs === 0 && tbtMs === 0) return undefined;
  return { mayBeLate, ...(ttftMs > 0 ? { ttftMs } : {}), ...(tbtMs > 0 ? { tbtMs } : {}) };
}

export function wireFromDecision(
  decision: PlacementDecision,
  leaderToken: number,
): MessageInitShape<typeof PlacementSchema> {
  const [{ mode, prefill, decode, isLocalPrefill, fetch }, ...others] = decision.candidates;
  const otherPrefills = others.flatMap((other) =>
    prefill !== undefined && other.prefill !== undefined && other.decode === decode ? [workerRef(other.prefill)] : [],
  );
  return {
    mode: mode === "split" ? PlacementMode.SPLIT : PlacementMode.AGGREGATED,
    ...(prefill === undefined ? {} : { prefill: workerRef(prefill) }),
    decode: workerRef(decode),
    predictedTtftMs: decision.predictedTtftMs,
    predictedTbtMs: decision.predictedTbtMs,
    reason: decision.reason,
    localPrefill: isLocalPrefill,
    ...(fetch === undefined ? {} : { fetch: wireFromFetch(fetch) }),
    otherPrefills: otherPrefills.slice(0, OTHER_PREFILLS_MAX),
    leaderToken: BigInt(leaderToken),
    serviceClass: WIRE_CLASSES[decision.serviceClass],
    isBestEffort: decision.isBestEffort,
    predictedOutputTokens: decision.predictedOutputTokens,
  };
}

function wireFromFetch({ holder, tokenEnd, isStore = false }: PrefixFetchPlan) {
  return { holder: workerRef(holder), tokenEnd, fromStore: isStore };
}

/** Epochs and sequences are counted one by one or are milliseconds; a number past 2^53 is none of ours. */
export function safeNumber(field: string, value: bigint): number {
  if (value < 1n || value > BigInt(Number.MAX_SAFE_INTEGER)) throw wrong(field, `${field} is ${value}; it starts at 1`);
  return Number(value);
}

export function wrong(field: string, message: string): KvasirError {
  return new KvasirError({ reason: "invalid_request", message, field });
}

function workerRef({ facts, epoch }: PrefixHolder) {
  return { workerId: facts.workerId, epoch: BigInt(epoch), address: facts.address };
}

function requireText(field: string, text: string): void {
  if (text.length < 1 || text.length > TEXT_LENGTH_MAX) {
    throw wrong(field, `${field} has ${text.length} characters; use 1 to ${TEXT_LENGTH_MAX}`);
  }
}

function measured(value: number): number {
  return Number.isFinite(value) && value > 0 ? value : 0;
}
