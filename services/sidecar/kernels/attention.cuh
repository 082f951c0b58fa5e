// One warp's part of attention: 16 query rows against tiles of 64 keys, with the online softmax of FlashAttention-2 (Dao, ICLR 2024).
//
// Query rows are packed: row i of a tile is query head `i % group` of KV head h at token `i / group`, so that the heads that share keys share
// the loads of them. A row meets the same key tiles with the same operations wherever it lies in a tile, whatever the other rows are and
// whether the tile's four warps hold 64 rows (attention_rows.cu) or each warp walks a partition of its own (attention_decode.cu). Its result
// therefore depends on its own query, keys and position, and on the length of a partition.
#pragma once

#include "pool.cuh"

/// Queries that share a walk over keys. Packed row i is of the list's place `row_begin + (packed_begin + i) / group`, and that of row `rows[place]`.
struct AttentionTile {
  uint32_t table_begin;   // Of the block table in `tables`.
  uint32_t row_begin;
  uint32_t packed_begin;
  uint32_t packed_count;  // At most 64, or 16 for decode.
  uint32_t key_begin;     // A multiple of the partition's length.
  uint32_t key_end;       // One past the last key that any of the rows sees.
};

struct AttentionParams {
  const uint16_t* query;     // bf16 [rows, head_count · head_size].
  const uint16_t* pool;
  const uint32_t* tables;    // Block ids.
  const AttentionTile* tiles;
  const uint32_t* rows;
  const uint32_t* positions; // Of each row of `query`; a row sees the keys of positions up to its own.
  uint16_t* out;             // As query.
  float* partial_sums;       // [places, head_count, slot_count, head_size]; slot i is of keys from i · partition on.
  float* partial_stats;      // [places, head_count, slot_count, 2]: largest score, in powers of two, and total weight.
  PoolShape shape;
  uint32_t layer;
  uint32_t head_count;
  uint32_t partition;        // Keys of a partition, a multiple of 64; 0: one walk over all keys, straight to `out`.
  uint32_t slot_count;
  float scale;               // log2(e) / sqrt(head_size)
};

constexpr uint32_t KEYS = 64;

template <int D>
struct KeyTile {
  static constexpr uint32_t STRIDE = D + 8;  // 16 bytes more, so that eight rows lie in different banks.
  static constexpr uint32_t ELEMENTS = KEYS * STRIDE;
};

/// The threads that share a key tile.
struct BlockTeam {
  static __device__ __forceinline__ uint32_t thread() { return threadIdx.x; }
  static __device__ __forceinline__ uint32_t size() { return 128; }
  static __device__ __forceinline__ void sync() { __syncthreads(); }
};
struct WarpTeam {
  static __device__ __forceinline__ uint32_t thread() { return threadIdx.x % WARP_SIZE; }
  static __device__ __forceinline__ uint32_t size() { return WARP_SIZE; }
  static __device__ __forceinline__ void sync() { __syncwarp(); }
};

/// Where the two rows of this lane (`lane / 4` and 8 below it) lie; `is_valid` false beyond the tile.
struct OwnRows {
  bool is_valid[2];
  uint32_t place[2];
  uint64_t row[2];
  uint32_t head[2];
  uint32_t key_end[2];  // One past the last key the row sees; 0 for none.

  __device__ __forceinline__ OwnRows(const AttentionParams& p, const AttentionTile& tile, uint32_t first_packed) {
    const uint32_t group = p.head_count / p.shape.kv_head_count;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t index = first_packed + threadIdx.x % WARP_SIZE / 4 + i * 8;
      is_valid[i] = index < tile.packed_count;
      row[i] = 0;
      place[i] = head[i] = key_end[i] = 0;
      if (!is_valid[i]) continue;
      const uint32_t packed = tile.packed_begin + index;
      place[i] = tile.row_begin + packed / group;
      row[i] = p.rows[place[i]];
      head[i] = blockIdx.y * group + packed % group;
      key_end[i] = min(p.positions[row[i]] + 1, tile.key_end);
    }
  }
};

template <int D>
struct RunningRows {
  float sums[D / 8][4] = {};  // As a fragment: [8 columns][row, column].
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0f, 0.0f};  // This lane's columns only, until finished.
  // Beside the sums of 256 columns no registers are left for the query, which is then read for each key tile again, from the first-level cache.
  static constexpr bool KEEPS_QUERY = D <= 128;
  unsigned query[KEEPS_QUERY ? D / 16 : 1][4];
  const uint16_t* query_rows[2];  // This lane's columns; null beyond the tile.

  __device__ __forceinline__ void load_query(const AttentionParams& p, const OwnRows& own) {
    const uint32_t pair = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      query_rows[i] = own.is_valid[i] ? p.query + (own.row[i] * p.head_count + own.head[i]) * D + pair : nullptr;
    }
    if constexpr (KEEPS_QUERY) {
#pragma unroll
      for (int step = 0; step < D / 16; step++) load_fragment(query[step], step);
    }
  }

  __device__ __forceinline__ void load_fragment(unsigned (&a)[4], int step) const {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint16_t* from = query_rows[i];
      a[i] = from != nullptr ? *reinterpret_cast<const unsigned*>(from + step * 16) : 0;
      a[2 + i] = from != nullptr ? *reinterpret_cast<const unsigned*>(from + step * 16 + 8) : 0;
    }
  }

  /// `scores = query · keysᵀ`, minus infinity where a row does not see a key.
  __device__ __forceinline__ void score(float (&scores)[8][4], const uint16_t* keys, uint32_t first_key,
                                        const OwnRows& own) const {
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    const uint16_t* at = keys + (lane / 16 * 8 + lane % 8) * KeyTile<D>::STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int i = 0; i < 8; i++)
      for (int j = 0; j < 4; j++) scores[i][j] = 0.0f;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
      unsigned a[4];
      if constexpr (KEEPS_QUERY) {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = query[step][i];
      } else {
        load_fragment(a, step);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        unsigned b[4];
        load_matrices<false>(b, at + i * 16 * KeyTile<D>::STRIDE + step * 16);
        const unsigned low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
        mma_bf16(scores[2 * i], a, low);
        mma_bf16(scores[2 * i + 1], a, high);
      }
    }
    const bool sees_all = first_key + KEYS <= own.key_end[0] && first_key + KEYS <= own.key_end[1];
    if (sees_all) return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const uint32_t key = first_key + i * 8 + lane % 4 * 2 + j % 2;
        if (key >= own.key_end[j / 2]) scores[i][j] = -INFINITY;
      }
    }
  }

  /// Turns scores into weights against the largest so far, and rescales what was summed.
  __device__ __forceinline__ void weigh(float (&scores)[8][4], float scale) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float top = largest[r];
#pragma unroll
      for (int i = 0; i < 8; i++) top = fmaxf(top, fmaxf(scores[i][2 * r], scores[i][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
      top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
      // A row that has seen no key yet keeps sums of zero: minus infinity is never subtracted from itself.
      const float base = top == -INFINITY ? 0.0f : top * scale;
      const float correction = exp2_approx(__fmaf_rn(largest[r], scale, -base));
      largest[r] = top;
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int j = 2 * r; j < 2 * r + 2; j++) {
          scores[i][j] = exp2_approx(__fmaf_rn(scores[i][j], scale, -base));
          sum += scores[i][j];
        }
      }
      total[r] = __fmaf_rn(total[r], correction, sum);
#pragma unroll
      for (int i = 0; i < D / 8; i++) {
        sums[i][2 * r] *= correction;
        sums[i][2 * r + 1] *= correction;
      }
    }
  }

  /// `sums += weights · values`, weights rounded to bf16.
  __device__ __forceinline__ void accumulate(const float (&weights)[8][4], const uint16_t* values) {
    const uint32_t lane = threadIdx.x % WARP_SIZE;
    const uint16_t* at = values + lane % 16 * KeyTile<D>::STRIDE + lane / 16 * 8;
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const unsigned a[4] = {pack_bf16(weights[2 * step][0], weights[2 * step][1]),
                             pack_bf16(weights[2 * step][2], weights[2 * step][3]),
                             pack_bf16(weights[2 * step + 1][0], weights[2 * step + 1][1]),
                             pack_bf16(weights[2 * step + 1][2], weights[2 * step + 1][3])};
#pragma unroll
      for (int i = 0; i < D / 16; i++) {
        unsigned b[4];
        load_matrices<true>(b, at + step * 16 * KeyTile<D>::STRIDE + i * 16);
        const unsigned low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
        mma_bf16(sums[2 * i], a, low);
        mma_bf16(sums[2 * i + 1], a, high);
      }
    }
  }

  /// Writes the rows' results, or, with partitions, what attention_combine.cu joins.
  __device__ __forceinline__ void finish(const AttentionParams& p, const OwnRows& own, uint32_t slot) {
    const uint32_t pair = threadIdx.x % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float sum = total[r];
      sum += __shfl_xor_sync(ALL_LANES, sum, 1);
      sum += __shfl_xor_sync(ALL_LANES, sum, 2);
      if (!own.is_valid[r]) continue;
      if (p.partition == 0) {
        const float factor = 1.0f / sum;
        auto* out = reinterpret_cast<unsigned*>(p.out + (own.row[r] * p.head_count + own.head[r]) * D + pair);
#pragma unroll
        for (int i = 0; i < D / 8; i++) out[i * 4] = pack_bf16(sums[i][2 * r] * factor, sums[i][2 * r + 1] * factor);
        continue;
      }
      const uint64_t place = (static_cast<uint64_t>(own.place[r]) * p.head_count + own.head[r]) * p.slot_count + slot;
      auto* out = reinterpret_cast<float2*>(p.partial_sums + place * D + pair);
#pragma unroll
      for (int i = 0; i < D / 8; i++) out[i * 4] = float2{sums[i][2 * r], sums[i][2 * r + 1]};
      if (pair == 0) *reinterpret_cast<float2*>(p.partial_stats + place * 2) = float2{largest[r] * p.scale, sum};
    }
  }
};

/// Starts the copy of 64 keys or values into shared memory; what lies at or beyond `key_end` becomes zero.
template <int D, typename Team>
__device__ __forceinline__ void load_keys(uint16_t* to, const AttentionParams& p, const uint32_t* table, uint32_t is_value,
                                          uint32_t first_key, uint32_t key_end) {
  constexpr uint32_t CHUNKS = D / 8;
#pragma unroll 4
  for (uint32_t i = Team::thread(); i < KEYS * CHUNKS; i += Team::size()) {
    const uint32_t key = first_key + i / CHUNKS, chunk = i % CHUNKS;
    const bool is_valid = key < key_end;
    const uint16_t* from = p.pool;
    if (is_valid) {
      const uint32_t slot = table[key / p.shape.block_size] * p.shape.block_size + key % p.shape.block_size;
      from += pool_offset(p.shape, slot, p.layer, is_value, blockIdx.y) + chunk * 8;
    }
    async_copy16(to + i / CHUNKS * KeyTile<D>::STRIDE + chunk * 8, from, is_valid);
  }
  async_commit();
}

/// Walks keys `begin..end`, begin a multiple of 64. `keys` and `values` are a KeyTile each, of the team. While the scores of a tile are
/// computed its values travel, and while it is summed the next tile's keys do.
template <int D, typename Team>
__device__ __forceinline__ void walk(RunningRows<D>& running, const AttentionParams& p, const AttentionTile& tile,
                                     const OwnRows& own, uint32_t begin, uint32_t end, uint16_t* keys, uint16_t* values) {
  const uint32_t* table = p.tables + tile.table_begin;
  load_keys<D, Team>(keys, p, table, 0, begin, end);
  load_keys<D, Team>(values, p, table, 1, begin, end);
  for (uint32_t first_key = begin; first_key < end; first_key += KEYS) {
    const bool is_last = first_key + KEYS >= end;
    float scores[8][4];
    async_wait<1>();
    Team::sync();
    running.score(scores, keys, first_key, own);
    Team::sync();
    if (is_last) {
      async_commit();
    } else {
      load_keys<D, Team>(keys, p, table, 0, first_key + KEYS, end);
    }
    running.weigh(scores, p.scale);
    async_wait<1>();
    Team::sync();
    running.accumulate(scores, values);
    Team::sync();
    if (is_last) {
      async_commit();
    } else {
      load_keys<D, Team>(values, p, table, 1, first_key + KEYS, end);
    }
  }
  async_wait<0>();
}
