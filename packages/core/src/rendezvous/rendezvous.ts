import { assert } from "../assert.ts";

/** A store node and its part of the whole. */
export interface RendezvousNode {
  readonly id: string;
  /** Above 0; twice the weight is twice the keys, on average. */
  readonly weight: number;
}

/**
 * The nodes that hold a key, best first: the `count` highest of
 *
 *     score(node, key) = −weight / ln(u),  u = hash(node, key) in (0, 1)
 *
 * (highest random weight: Thaler and Ravishankar, IEEE/ACM ToN 1998; weighted as by Schindelhauer and Schomaker, SPAA 2005). Each node's score
 * depends on itself and the key alone. So a node that joins takes keys from the others and moves none between them, one that leaves gives up
 * its own only, and a key's further replicas are where it goes when the first node leaves. O(nodes) a key.
 *
 * `key`: the bytes of a block's hash from `offset` on, of which 8 are used.
 */
export function rendezvous(
  nodes: readonly RendezvousNode[],
  key: Uint8Array,
  count: number,
  offset = 0,
): readonly RendezvousNode[] {
  assert(key.length >= offset + 8, `a key of ${key.length - offset} bytes, at least 8 are needed`);
  const [low, high] = [word(key, offset), word(key, offset + 4)];
  const scored = nodes.map((node) => {
    assert(node.weight > 0, `node ${node.id} has weight ${node.weight}, must be above 0`);
    return { node, score: -node.weight / Math.log(unit(seedOf(node.id), low, high)) };
  });
  scored.sort((a, b) => b.score - a.score || (a.node.id < b.node.id ? -1 : 1));
  return scored.slice(0, count).map(({ node }) => node);
}

/**
 * Nodes that a block should be on by how often it is used: one, and one more for each `usesPerReplica` uses in the time that uses are counted,
 * at most all. Larger: hot blocks queue at one node; smaller: memory holds copies instead of other blocks.
 */
export function replicaCount(uses: number, usesPerReplica: number, nodeCount: number): number {
  return Math.max(1, Math.min(nodeCount, 1 + Math.floor(uses / usesPerReplica)));
}

function word(bytes: Uint8Array, offset: number): number {
  const [b0 = 0, b1 = 0, b2 = 0, b3 = 0] = bytes.subarray(offset, offset + 4);
  return b0 | (b1 << 8) | (b2 << 16) | (b3 << 24);
}

/** FNV-1a of the id's UTF-16 units. */
function seedOf(id: string): number {
  let seed = 0x811c9dc5;
  for (let index = 0; index < id.length; index++) seed = Math.imul(seed ^ id.charCodeAt(index), 0x01000193);
  return seed;
}

/** 52 bits of a mix of node and key, as a number above 0 and below 1. */
function unit(seed: number, low: number, high: number): number {
  const first = finalize(seed ^ low);
  const second = finalize(first ^ high ^ 0x9e3779b9);
  return ((second >>> 0) * 0x100000 + (finalize(second ^ first) >>> 12) + 0.5) / 2 ** 52;
}

/** MurmurHash3's finaliser. */
function finalize(value: number): number {
  let bits = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return bits ^ (bits >>> 16);
}
