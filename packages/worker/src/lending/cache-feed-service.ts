import { once } from "node:events";
import { KvasirError } from "@kvasir/core";
import type { CacheFeedService } from "@kvasir/proto";
import type { Implementation } from "@kvasir/rpc";
import type { Incarnation } from "../incarnation.ts";

/** `CacheFeedService`: one incarnation's feed, to its end. */
export function cacheFeedService(
  workerId: string,
  current: () => Incarnation | undefined,
): Implementation<typeof CacheFeedService> {
  return {
    async follow(_request, call) {
      const incarnation = current();
      if (incarnation === undefined) throw gone("the sidecar is not running yet");
      const { epoch, layout, feed } = incarnation;
      call.write({ kind: { case: "hello", value: { workerId, epoch, layout } } });
      feed.add(call);
      try {
        const isOver = await Promise.race([
          incarnation.ended.then(() => true),
          once(call, "cancelled").then(() => false),
        ]);
        if (isOver) throw gone("the sidecar of this feed is gone");
      } finally {
        feed.delete(call);
      }
    },
  };
}

function gone(message: string): KvasirError {
  return new KvasirError({ reason: "unavailable", message: `${message}; follow again`, retryAfterMs: 1_000 });
}
