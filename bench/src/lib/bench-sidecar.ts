import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import {
  type DescribeResponse,
  type ExecuteRequestSchema,
  type ExecuteResponse,
  type FetchRequestSchema,
  type FetchResponse,
  KernelService,
  type Ticket,
  TicketClaimsSchema,
  TicketSchema,
} from "@kvasir/proto";
import { createClient, type RpcClient } from "@kvasir/rpc";
import { SIDECAR, startUntilLine } from "./run.ts";

const KEY = Buffer.alloc(32, 5);
const SCOPE = Buffer.alloc(16, 9);
const EPOCH = 1n;
const LIFETIME_MS = 3_600_000;

type FetchInit = MessageInitShape<typeof FetchRequestSchema>;

export interface Pull {
  /** The last word about it; fails when it is taken back. */
  readonly done: Promise<FetchResponse>;
  /** Resolves when nothing writes any more. */
  takeBack(): Promise<void>;
}

/** A sidecar process and the calls of a worker that plans nothing. */
export class BenchSidecar {
  readonly about: DescribeResponse;
  readonly #client: RpcClient<typeof KernelService>;
  readonly #execution: ReturnType<RpcClient<typeof KernelService>["execute"]>;
  readonly #answers: ((answer: ExecuteResponse) => void)[] = [];
  readonly #stop: () => void;
  #stepId = 0n;
  #leaseNumber = 0;
  #failure: Error | undefined;

  private constructor(client: RpcClient<typeof KernelService>, about: DescribeResponse, stop: () => void) {
    this.about = about;
    this.#client = client;
    this.#stop = stop;
    this.#execution = client.execute();
    this.#execution.on("data", (answer: ExecuteResponse) => this.#answers.shift()?.(answer));
    this.#execution.on("error", (error) => {
      this.#failure = error;
    });
  }

  static async start(flags: readonly string[]): Promise<BenchSidecar> {
    const directory = mkdtempSync(join(tmpdir(), "kvasir-bench-"));
    const socket = join(directory, "s");
    const own = ["--socket", socket, "--worker-id", "bench", "--epoch", `${EPOCH}`];
    const input = `${KEY.toString("hex")}\n`;
    const { child } = await startUntilLine(SIDECAR, ["serve", ...own, ...flags], { input, until: '"ready"' });
    const client = createClient(KernelService, `unix:${socket}`);
    const about = await client.describe({}, { deadlineMs: 10_000 });
    return new BenchSidecar(client, about, () => {
      client.channel.close();
      child.stdin?.end();
      rmSync(directory, { recursive: true, force: true });
    });
  }

  /** One step; fails as the sidecar says. */
  async step(request: MessageInitShape<typeof ExecuteRequestSchema>): Promise<ExecuteResponse> {
    if (this.#failure) throw this.#failure;
    const answered = Promise.withResolvers<ExecuteResponse>();
    this.#answers.push(answered.resolve);
    this.#execution.once("error", answered.reject);
    this.#execution.write({ ...request, stepId: ++this.#stepId });
    const answer = await answered.promise;
    this.#execution.off("error", answered.reject);
    return answer;
  }

  /** Opens the first tokens of a sequence to pulls. */
  async publish(sequenceId: bigint, tokenCount: number, blockIds: readonly number[]): Promise<Ticket> {
    const leaseId = this.#leaseId();
    const expiresAtUnixMs = BigInt(Date.now() + LIFETIME_MS);
    const request = { leaseId, sequenceId, tokenCount, blockIds: [...blockIds], tenantScope: SCOPE, expiresAtUnixMs };
    await this.#client.publish(request, { deadlineMs: 10_000 });
    const layoutFingerprint = this.about.layout?.fingerprint ?? new Uint8Array();
    const claims = toBinary(
      TicketClaimsSchema,
      create(TicketClaimsSchema, {
        ...{ leaseId, sourceWorkerId: "bench", sourceEpoch: EPOCH, tokenBegin: 0, tokenEnd: tokenCount },
        ...{ expiresAtUnixMs, layoutFingerprint, tenantScope: SCOPE },
      }),
    );
    return create(TicketSchema, { claims, mac: createHmac("sha256", KEY).update(claims).digest() });
  }

  /** Pulls to the end; answers with the last word about it. */
  fetch(request: FetchInit): Promise<FetchResponse> {
    return this.begin(request).done;
  }

  /** Pulls until it is taken back. */
  begin(request: FetchInit, progressed: (progress: FetchResponse) => void = () => undefined): Pull {
    const leaseId = this.#leaseId();
    const call = this.#client.fetch({ ...request, leaseId, tenantScope: SCOPE });
    const done = new Promise<FetchResponse>((resolve, reject) => {
      call.on("data", (progress: FetchResponse) => {
        if (progress.complete) resolve(progress);
        else progressed(progress);
      });
      call.on("error", reject);
      call.on("end", () => reject(new Error("a fetch ended before its last block")));
    });
    return {
      done,
      takeBack: async () => {
        done.catch(() => undefined);
        call.cancel();
        await this.#client.fence({ leaseId }, { deadlineMs: 10_000 });
      },
    };
  }

  stop(): void {
    this.#execution.cancel();
    this.#stop();
  }

  #leaseId(): Buffer {
    const id = Buffer.alloc(16);
    id.writeUInt32BE(++this.#leaseNumber);
    return id;
  }
}
