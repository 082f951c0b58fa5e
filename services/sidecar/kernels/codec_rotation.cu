// A dense level's rotation: a matrix of signed bytes times columns of unsigned ones on the tensor cores, exact in 32 bits, with a scale for each
// row of a block and each token of a block (crates/kernels/src/coding/matrix8.rs has the format and the reasons).
//
// round_columns makes the bytes: numbers of one block and token share the scale at which the largest is 127; a block that is held finely is
// followed by what its rounding left over. multiply_columns: out[row][token] = offset[row] + Σ over terms, in order, of integer sum · scales.
//
//   content  u8  [sections][stride][content_bytes]   each block padded to 32 numbers with zeros (bytes of 128)
//   weights  s8  [rows, whole tiles of 64][row_bytes]  each term padded likewise

#include "codec.cuh"

struct MatrixBlock {
  uint32_t begin;         // First number.
  uint32_t count;
  uint32_t content;       // First byte in a token's content.
  uint32_t place;         // Of its scales.
  uint32_t rest_content;  // The same for what its rounding leaves over; place 0: nothing is kept of it.
  uint32_t rest_place;
};

struct MatrixTerm {
  uint32_t place;    // Of the columns' scales.
  uint32_t content;  // First byte in a token's content, and
  uint32_t weights;  // in a row of weights; multiples of 32.
  uint32_t bytes;    // A multiple of 32.
};

struct Matrix {
  uint64_t weights;        // Where its weights begin.
  uint32_t row_bytes;
  uint32_t row_count;
  uint32_t term_begin;
  uint32_t term_count;
  uint32_t block_begin;
  uint32_t block_count;
  uint32_t scale_begin;    // [terms][rows, whole tiles]
  uint32_t channel_begin;  // Of centres, factors and offsets.
};

struct RotationParams {
  const CodecSection* sections;
  const Matrix* matrices;      // By group.
  const MatrixBlock* blocks;
  const MatrixTerm* terms;
  const uint8_t* weights;
  const float* weight_scales;
  const int32_t* weight_starts;
  const float* centres;        // Subtracted from columns first; null: none.
  const float* factors;        // Columns are multiplied with these then.
  const float* offsets;        // Added to products; null: none.
  const float* columns;
  uint8_t* content;
  float* scales;               // [sections][scales_each][stride]
  float* out;                  // As columns.
  CodecSlots slots;
  uint32_t content_bytes;
  uint32_t scales_each;        // Scales of a token, at most.
};

/// Grid: x over groups of 32 tokens, y over groups of four blocks, z over sections; one warp a block, a lane a token.
extern "C" __global__ void __launch_bounds__(128) round_columns(RotationParams p) {
  const CodecSection s = p.sections[blockIdx.z];
  const Matrix matrix = p.matrices[s.group];
  const uint32_t index = blockIdx.y * 4 + threadIdx.x / WARP_SIZE, token = blockIdx.x * WARP_SIZE + threadIdx.x % WARP_SIZE;
  if (index >= matrix.block_count || token >= padded_tokens(s)) return;
  const MatrixBlock block = p.blocks[matrix.block_begin + index];
  const float* column = p.columns + (static_cast<uint64_t>(blockIdx.z) * p.slots.axes + block.begin) * p.slots.stride + token;
  const auto number = [&](uint32_t i) {
    const float x = column[static_cast<uint64_t>(i) * p.slots.stride];
    if (p.centres == nullptr) return x;
    const uint32_t channel = matrix.channel_begin + block.begin + i;
    return __fmul_rn(__fsub_rn(x, p.centres[channel]), p.factors[channel]);
  };
  float largest = 0.0f;
  for (uint32_t i = 0; i < block.count; i++) {
    const float x = number(i);
    largest = larger(larger(x, __fsub_rn(0.0f, x)), largest);
  }
  const float scale = __fmul_rn(largest, 1.0f / 127.0f);
  const float inverse = __fdiv_rn(1.0f, larger(scale, 1.17549435e-38f));
  const float rest_scale = __fmul_rn(scale, 0.5f / 127.0f);
  float* scales = p.scales + static_cast<uint64_t>(blockIdx.z) * p.scales_each * p.slots.stride + token;
  scales[static_cast<uint64_t>(block.place) * p.slots.stride] = scale;
  if (block.rest_place != 0) scales[static_cast<uint64_t>(block.rest_place) * p.slots.stride] = rest_scale;
  uint8_t* content = p.content + (static_cast<uint64_t>(blockIdx.z) * p.slots.stride + token) * p.content_bytes;
  for (uint32_t first = 0; first < (block.count + 31) / 32 * 32; first += 4) {
    uint32_t bytes = 0x80808080u, rest_bytes = 0x80808080u;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      if (first + i >= block.count) break;
      const float steps = __fmul_rn(number(first + i), inverse), whole = whole_of(steps);
      const float left = whole_of(__fmul_rn(__fsub_rn(steps, whole), 254.0f));
      bytes ^= (static_cast<uint32_t>(static_cast<int32_t>(whole) + 128) ^ 0x80) << 8 * i;
      rest_bytes ^= (static_cast<uint32_t>(static_cast<int32_t>(left) + 128) ^ 0x80) << 8 * i;
    }
    *reinterpret_cast<uint32_t*>(content + block.content + first) = bytes;
    if (block.rest_place != 0) *reinterpret_cast<uint32_t*>(content + block.rest_content + first) = rest_bytes;
  }
}
EXPORT_KERNEL(round_columns);

constexpr uint32_t TILE = 64, STEP = 32, STEP_STRIDE = 48;  // Rows of 48 bytes: the lanes of a fragment meet 32 banks.

/// Grid: x over tiles of 64 tokens, y over tiles of 64 rows, z over sections; a warp has 16 rows.
extern "C" __global__ void __launch_bounds__(128) multiply_columns(RotationParams p) {
  STATIC_SHARED(uint4, weights, TILE * STEP_STRIDE / 16);
  STATIC_SHARED(uint4, content, TILE * STEP_STRIDE / 16);
  const CodecSection s = p.sections[blockIdx.z];
  const Matrix matrix = p.matrices[s.group];
  const uint32_t first_token = blockIdx.x * TILE, first_row = blockIdx.y * TILE, token_count = padded_tokens(s);
  if (first_token >= token_count || first_row >= matrix.row_count) return;
  const uint32_t lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, group = lane / 4, pair = lane % 4 * 2;
  const uint32_t own_row = first_row + warp * 16 + group;
  // What this thread copies of each step: half of a row's 32 bytes, of both sides.
  const uint32_t copied = threadIdx.x / 2, half = threadIdx.x % 2;
  const uint8_t* from_weights = p.weights + matrix.weights + static_cast<uint64_t>(first_row + copied) * matrix.row_bytes + half * 16;
  const bool has_token = first_token + copied < token_count;
  const uint8_t* from_content =
      p.content + (static_cast<uint64_t>(blockIdx.z) * p.slots.stride + first_token + copied) * p.content_bytes + half * 16;
  const uint32_t to = (copied * STEP_STRIDE + half * 16) / 16;
  const uint32_t tile_rows = (matrix.row_count + TILE - 1) / TILE * TILE;

  float out[8][4];
#pragma unroll
  for (int i = 0; i < 8; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const uint32_t row = own_row + j / 2 * 8;
      out[i][j] = p.offsets == nullptr || row >= matrix.row_count ? 0.0f : p.offsets[matrix.channel_begin + row];
    }
  }
  for (uint32_t index = 0; index < matrix.term_count; index++) {
    const MatrixTerm term = p.terms[matrix.term_begin + index];
    const uint64_t scale_at = matrix.scale_begin + static_cast<uint64_t>(index) * tile_rows + own_row;
    int sums[8][4];
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) sums[i][j] = p.weight_starts[scale_at + j / 2 * 8];
    }
    for (uint32_t k = 0; k < term.bytes; k += STEP) {
      __syncthreads();
      weights[to] = *reinterpret_cast<const uint4*>(from_weights + term.weights + k);
      content[to] = has_token ? *reinterpret_cast<const uint4*>(from_content + term.content + k) : uint4{0, 0, 0, 0};
      __syncthreads();
      const auto* a_at = reinterpret_cast<const uint32_t*>(weights) + ((warp * 16 + group) * STEP_STRIDE + 2 * pair) / 4;
      constexpr uint32_t EIGHT_ROWS = 8 * STEP_STRIDE / 4;
      const unsigned a[4] = {a_at[0], a_at[EIGHT_ROWS], a_at[4], a_at[EIGHT_ROWS + 4]};
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const auto* b_at = reinterpret_cast<const uint32_t*>(content) + ((i * 8 + group) * STEP_STRIDE + 2 * pair) / 4;
        const unsigned b[2] = {b_at[0], b_at[4]};
        mma_s8u8(sums[i], a, b);
      }
    }
    const float* scales = p.scales + (static_cast<uint64_t>(blockIdx.z) * p.scales_each + term.place) * p.slots.stride;
    const float row_scales[2] = {p.weight_scales[scale_at], p.weight_scales[scale_at + 8]};
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint32_t token = first_token + i * 8 + pair;
      if (token >= token_count) continue;
      const float2 of_tokens = *reinterpret_cast<const float2*>(scales + token);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float scale = __fmul_rn(j % 2 == 0 ? of_tokens.x : of_tokens.y, row_scales[j / 2]);
        out[i][j] = __fmaf_rn(static_cast<float>(sums[i][j]), scale, out[i][j]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const uint32_t row = own_row + j * 8;
    if (row >= matrix.row_count) continue;
    float* to_row = p.out + (static_cast<uint64_t>(blockIdx.z) * p.slots.axes + row) * p.slots.stride;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint32_t token = first_token + i * 8 + pair;
      if (token < token_count) *reinterpret_cast<float2*>(to_row + token) = float2{out[i][2 * j], out[i][2 * j + 1]};
    }
  }
}
EXPORT_KERNEL(multiply_columns);
