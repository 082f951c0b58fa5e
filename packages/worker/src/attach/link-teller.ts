import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Instant, msFromNanos, nanosBetween, type TransferBook } from "@kvasir/core";
import type { MeasuredLinkSchema } from "@kvasir/proto";

/** What an incarnation measures of links. */
export type ToldLinks = Pick<TransferBook, "measurementCount" | "measuredAfter">;

/** Tells one router on one stream what was measured of links: first ever, then what is new. */
export class LinkTeller {
  readonly #links: ToldLinks;
  /** Measurements that were told. */
  #toldCount = 0;

  constructor(links: ToldLinks) {
    this.#links = links;
  }

  /** Measured since it was asked last, the newest first. */
  news(now: Instant): readonly MessageInitShape<typeof MeasuredLinkSchema>[] {
    const measured = this.#links.measuredAfter(this.#toldCount);
    this.#toldCount = this.#links.measurementCount;
    return measured.map(({ source, measuredAt, rates }) => ({
      source,
      exactBytesPerSecond: rates.exact * 1e3,
      nearBytesPerSecond: rates.near * 1e3,
      fastBytesPerSecond: rates.fast * 1e3,
      ageMs: Math.max(0, Math.round(msFromNanos(nanosBetween(measuredAt, now)))),
    }));
  }
}
