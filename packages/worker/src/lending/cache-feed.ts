import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ServerWritableStream } from "@grpc/grpc-js";
import type { FollowRequest, FollowResponseSchema, UsedBlocksSchema } from "@kvasir/proto";

export type FeedCall = ServerWritableStream<FollowRequest, MessageInitShape<typeof FollowResponseSchema>>;

/** Tells stores which cached blocks requests used. Who reads too slowly misses some: they are hints. */
export class CacheFeed {
  readonly #followers = new Set<FeedCall>();
  #missedCount = 0;

  get followerCount(): number {
    return this.#followers.size;
  }

  /** Requests that a follower was not told of. */
  get missedCount(): number {
    return this.#missedCount;
  }

  add(call: FeedCall): void {
    this.#followers.add(call);
  }

  delete(call: FeedCall): void {
    this.#followers.delete(call);
  }

  tell(value: MessageInitShape<typeof UsedBlocksSchema>): void {
    for (const call of this.#followers) {
      if (call.writableNeedDrain) this.#missedCount++;
      else call.write({ kind: { case: "used", value } });
    }
  }
}
