import { CacheFeedService, type FeedHello, type UsedBlocks } from "@kvasir/proto";
import { createClient, errorFromService, type RpcClient, type Transport } from "@kvasir/rpc";
import type { WorkerRecord } from "@kvasir/state";
import type { Log } from "@kvasir/worker";

const RETRY_FIRST_MS = 100;
const RETRY_MAX_MS = 2_000;

/** A worker whose feed is followed, as it told of itself. */
export interface FollowedWorker {
  readonly workerId: string;
  readonly role: WorkerRecord["role"];
  /** host:port of its gRPC services. */
  readonly address: string;
  readonly hello: FeedHello;
}

export interface FollowerListener {
  /** A worker, or a new incarnation of one, tells from now on. */
  followed(worker: FollowedWorker): void;
  used(worker: FollowedWorker, used: UsedBlocks): void;
  /** Nothing can be had from it any more. */
  lost(workerId: string): void;
}

type Member = Pick<WorkerRecord, "workerId" | "role" | "address">;

/** One feed for each worker that membership names. */
export class WorkerFollowers {
  readonly #transport: Transport;
  readonly #log: Log;
  readonly #listener: FollowerListener;
  readonly #followers = new Map<string, { readonly address: string; readonly follower: Follower }>();

  constructor(transport: Transport, log: Log, listener: FollowerListener) {
    this.#transport = transport;
    this.#log = log;
    this.#listener = listener;
  }

  /** The workers there are now: new ones are followed, those gone are left. */
  setWorkers(members: readonly Member[]): void {
    const addresses = new Map(members.map((member) => [member.workerId, member.address]));
    for (const [workerId, { address, follower }] of this.#followers) {
      if (addresses.get(workerId) === address) continue;
      follower.close();
      this.#followers.delete(workerId);
    }
    for (const member of members) {
      if (this.#followers.has(member.workerId)) continue;
      const follower = new Follower(member, this.#transport, this.#log, this.#listener);
      this.#followers.set(member.workerId, { address: member.address, follower });
    }
  }

  /** Workers that tell now. */
  get followedCount(): number {
    return [...this.#followers.values()].filter(({ follower }) => follower.isFollowing).length;
  }

  close(): void {
    this.setWorkers([]);
  }
}

/** Follows one worker from break to break, until it is closed. */
class Follower {
  readonly #member: Member;
  readonly #client: RpcClient<typeof CacheFeedService>;
  readonly #log: Log;
  readonly #listener: FollowerListener;
  #stream: ReturnType<RpcClient<typeof CacheFeedService>["follow"]> | undefined;
  #worker: FollowedWorker | undefined;
  #retryMs = RETRY_FIRST_MS;
  #timer: NodeJS.Timeout | undefined;
  #isClosed = false;

  constructor(member: Member, transport: Transport, log: Log, listener: FollowerListener) {
    this.#member = member;
    this.#client = createClient(CacheFeedService, member.address, transport);
    this.#log = log;
    this.#listener = listener;
    this.#follow();
  }

  get isFollowing(): boolean {
    return this.#worker !== undefined;
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    this.#stream?.cancel();
    this.#leave();
    this.#client.channel.close();
  }

  #follow(): void {
    const stream = this.#client.follow({});
    this.#stream = stream;
    stream.on("data", ({ kind }) => {
      if (this.#stream !== stream || this.#isClosed) return;
      if (kind.case === "hello") {
        this.#retryMs = RETRY_FIRST_MS;
        this.#worker = { ...this.#member, hello: kind.value };
        this.#listener.followed(this.#worker);
      } else if (kind.case === "used" && this.#worker !== undefined) this.#listener.used(this.#worker, kind.value);
    });
    stream.on("error", (error) => this.#broken(stream, errorFromService(error).message));
    stream.on("end", () => this.#broken(stream, "it ended its feed"));
  }

  #broken(stream: unknown, message: string): void {
    if (this.#stream !== stream || this.#isClosed) return;
    this.#stream = undefined;
    if (this.#worker !== undefined) {
      this.#log.info({ workerId: this.#member.workerId }, `a worker tells no more of its cache: ${message}`);
    }
    this.#leave();
    this.#timer = setTimeout(() => this.#follow(), this.#retryMs);
    this.#retryMs = Math.min(2 * this.#retryMs, RETRY_MAX_MS);
  }

  #leave(): void {
    if (this.#worker !== undefined) this.#listener.lost(this.#member.workerId);
    this.#worker = undefined;
  }
}
