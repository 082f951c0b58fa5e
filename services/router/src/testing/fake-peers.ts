import type { MessageInitShape } from "@bufbuild/protobuf";
import type { KvasirError } from "@kvasir/core";
import {
  type CacheEventSchema,
  CacheMedium,
  KvDtype,
  type Placement,
  type PlaceStartSchema,
  RouterService,
  type WorkerHelloSchema,
  type WorkerLoadSchema,
  WorkerRole,
} from "@kvasir/proto";
import { createClient, errorFromService, type RpcClient } from "@kvasir/rpc";

type Client = RpcClient<typeof RouterService>;
type Load = MessageInitShape<typeof WorkerLoadSchema>;

const BLOCK_COUNT = 11;

/** Plain clients of a router, for its tests: they keep everything they are told. */
export class FakePeers {
  readonly client: Client;

  constructor(routerAddress: string) {
    this.client = createClient(RouterService, routerAddress);
  }

  close(): void {
    this.client.channel.close();
  }

  worker(workerId: string, epoch = 1n): FakeWorker {
    return new FakeWorker(this.client, workerId, epoch);
  }

  request(
    promptTokenCount: number,
    maxTokens: number,
    extra: MessageInitShape<typeof PlaceStartSchema> = {},
  ): FakeRequest {
    const request = new FakeRequest(this.client);
    const value = {
      requestId: "r",
      model: "tiny",
      promptTokenCount,
      maxTokens,
      tenantScope: new Uint8Array(16),
      ...extra,
    };
    request.stream.write({ kind: { case: "start", value } });
    return request;
  }
}

/** A worker of eleven blocks of 32 tokens and a context of 320; its id's first letter says what it does. */
export class FakeWorker {
  readonly stream: ReturnType<Client["attach"]>;
  readonly acknowledged: number[] = [];
  snapshotsWanted = 0;
  /** Answers to its hellos. */
  readonly refused: string[] = [];
  readonly ended: Promise<KvasirError | undefined>;
  readonly #workerId: string;
  readonly #epoch: bigint;
  #sequence = 0n;

  constructor(client: Client, workerId: string, epoch: bigint) {
    this.#workerId = workerId;
    this.#epoch = epoch;
    this.stream = client.attach();
    this.stream.on("data", (response) => {
      this.acknowledged.push(Number(response.acknowledgedSequence));
      if (response.wantsCacheSnapshot) this.snapshotsWanted++;
      for (const { workerId, reason } of response.refusedPairs) this.refused.push(`${workerId}: ${reason}`);
    });
    this.ended = endOf(this.stream);
  }

  hello(extra: MessageInitShape<typeof WorkerHelloSchema> = {}): this {
    const roles: Record<string, WorkerRole> = { p: WorkerRole.PREFILL, d: WorkerRole.DECODE, m: WorkerRole.MIXED };
    const value: MessageInitShape<typeof WorkerHelloSchema> = {
      workerId: this.#workerId,
      role: roles[this.#workerId[0] ?? ""] ?? WorkerRole.UNSPECIFIED,
      address: `${this.#workerId}.test:1`,
      adminAddress: `${this.#workerId}.test:2`,
      model: "tiny",
      layout: {
        modelRevision: "test",
        dtype: KvDtype.BF16,
        blockSize: 32,
        layerCount: 2,
        kvHeadCount: 2,
        headSize: 16,
        rope: "none",
        fingerprint: new Uint8Array(16).fill(7),
        exactFingerprint: new Uint8Array(16).fill(7),
      },
      blockCount: BLOCK_COUNT,
      contextLength: 320,
    };
    const said = Object.assign(value, extra);
    this.stream.write({ epoch: this.#epoch, sequence: ++this.#sequence, kind: { case: "hello", value: said } });
    return this;
  }

  load(extra: Load = {}, skip = 0n): this {
    this.#sequence += skip;
    const value = { freeBlocks: BLOCK_COUNT, prefillTokensPerSecond: 1_000, decodeStepMs: 10, ...extra };
    this.stream.write({ epoch: this.#epoch, sequence: ++this.#sequence, kind: { case: "load", value } });
    return this;
  }

  /** One event of its cache. */
  cache(sequence: bigint, kind: NonNullable<MessageInitShape<typeof CacheEventSchema>["kind"]>): this {
    const value = { sequence, medium: CacheMedium.DEVICE, kind };
    this.stream.write({ epoch: this.#epoch, sequence: ++this.#sequence, kind: { case: "cache", value } });
    return this;
  }

  goodbye(): void {
    this.stream.write({ epoch: this.#epoch, sequence: ++this.#sequence, kind: { case: "goodbye", value: {} } });
  }

  /** Resolves when the router has taken everything sent so far. */
  async settled(): Promise<this> {
    await eventually(() => this.acknowledged.at(-1) === Number(this.#sequence));
    return this;
  }
}

export class FakeRequest {
  readonly stream: ReturnType<Client["place"]>;
  readonly positions: number[] = [];
  readonly placements: Placement[] = [];
  readonly ended: Promise<KvasirError | undefined>;

  constructor(client: Client) {
    this.stream = client.place();
    this.stream.on("data", ({ kind }) => {
      if (kind.case === "queued") this.positions.push(kind.value.position);
      else if (kind.case === "placed") this.placements.push(kind.value);
    });
    this.ended = endOf(this.stream);
  }

  async placed(count = 1): Promise<Placement> {
    const early = this.ended.then((error) => error ?? new Error("the stream ended before a placement"));
    await Promise.race([
      eventually(() => this.placements.length >= count),
      early.then((error) => Promise.reject(error)),
    ]);
    const placement = this.placements.at(-1);
    if (placement === undefined) throw new Error("no placement");
    return placement;
  }

  async queued(): Promise<this> {
    await eventually(() => this.positions.length > 0);
    return this;
  }

  retry(...excludedWorkerIds: string[]): void {
    this.stream.write({ kind: { case: "retry", value: { excludedWorkerIds } } });
  }

  firstToken(): void {
    this.stream.write({ kind: { case: "firstToken", value: {} } });
  }
}

export async function eventually(condition: () => boolean | Promise<boolean>, maxMs = 8_000): Promise<void> {
  for (const end = performance.now() + maxMs; performance.now() < end; ) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error(`it did not happen in ${maxMs} ms`);
}

function endOf(stream: ReturnType<Client["place"]> | ReturnType<Client["attach"]>): Promise<KvasirError | undefined> {
  return new Promise((resolve) => {
    stream.on("error", (error) => resolve(errorFromService(error)));
    stream.on("end", () => resolve(undefined));
  });
}
