/** Where a holder keeps a block, fastest first: device memory, host memory, a store's DRAM, disk. */
export const MEDIA = ["device", "host", "store", "disk"] as const;
export type Medium = (typeof MEDIA)[number];

export const MEDIUM_COUNT = MEDIA.length;

/** 0 for the fastest. */
export function mediumRank(medium: Medium): number {
  return MEDIA.indexOf(medium);
}
