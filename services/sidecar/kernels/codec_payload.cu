// Puts sections together as they travel (crates/codec/src/section.rs): lengths, exceptions, stream, and what is kept as it is.
//
// sum_counts: how many exceptions come before each place. place_sections: where each section begins, once lengths are known. write_payload: a
// thread owns a word of the payload and asks for each of its bytes what lies there, so that neither sections nor their parts, which begin at
// any byte, meet in a word. No length passes by the host.

#include "codec.cuh"
#include "reduce.cuh"

constexpr uint32_t PAYLOAD_THREADS = 256;

struct SumCountsParams {
  const CodecSection* sections;
  uint32_t* counts;        // [sections][counts_each]; replaced by sums, one more than there are counts.
  uint32_t* beyond_counts; // [sections]
  uint32_t counts_each;
  uint32_t is_by_token;    // Counts are of each token of each head, else of each axis.
};

/// Grid: x over sections.
extern "C" __global__ void __launch_bounds__(PAYLOAD_THREADS) sum_counts(SumCountsParams p) {
  STATIC_SHARED(uint32_t, scratch, PAYLOAD_THREADS / WARP_SIZE);
  const CodecSection s = p.sections[blockIdx.x];
  uint32_t* counts = p.counts + static_cast<uint64_t>(blockIdx.x) * p.counts_each;
  const uint32_t rows = p.is_by_token != 0 ? s.head_count * s.token_count : s.axis_count;
  uint32_t before = 0;
  for (uint32_t first = 0; first < rows; first += PAYLOAD_THREADS) {
    const uint32_t row = first + threadIdx.x, own = row < rows ? counts[row] : 0;
    const uint32_t through = before + block_sum_through(own, scratch);
    before += block_sum(own, scratch);
    if (row < rows) counts[row] = through - own;
  }
  if (threadIdx.x == 0) {
    counts[rows] = before;
    p.beyond_counts[blockIdx.x] = before;
  }
}
EXPORT_KERNEL(sum_counts);

struct PayloadParams {
  const CodecSection* sections;
  const uint32_t* words_begin;
  const uint32_t* states;
  const uint16_t* words;
  const uint32_t* beyond;
  const uint32_t* beyond_counts;
  const uint32_t* planes;  // Lossy: for each bit plane of all groups low plane | bit << 16.
  const uint8_t* low;
  const uint8_t* packed;   // Lossless: where mantissas and signs are read.
  uint64_t* begins;        // [sections + 1]: where each section's gap begins; then where the last one ends.
  uint8_t* payload;
  uint64_t capacity;
  CodecSlots slots;
  uint32_t section_count;
  uint32_t beyond_max;
  uint32_t head_size;
  uint32_t dtype;
  uint32_t is_lossless;
};

/// A section with more exceptions than there is room for is written without them; who reads `beyond_counts` knows.
__device__ __forceinline__ uint32_t exceptions_of(const PayloadParams& p, uint32_t section) {
  const uint32_t count = p.beyond_counts[section];
  return count <= p.beyond_max ? count : 0;
}

__device__ __forceinline__ uint32_t stream_bytes_of(const PayloadParams& p, uint32_t section, const CodecSection& s) {
  return 4 * min(s.token_count, 64u) + 2 * (p.slots.axes * p.slots.stride - p.words_begin[section]);
}

__device__ __forceinline__ uint64_t elements_of(const PayloadParams& p, const CodecSection& s) {
  return static_cast<uint64_t>(s.head_count) * s.token_count * p.head_size;
}

__device__ __forceinline__ uint64_t tail_bytes_of(const PayloadParams& p, const CodecSection& s) {
  if (p.is_lossless == 0) return static_cast<uint64_t>(s.plane_count) * ((s.token_count + 7) / 8);
  const uint64_t elements = elements_of(p, s);
  return elements * (p.dtype == CODEC_F32 ? 3 : 1) + (p.dtype == CODEC_F16 ? 3 * ((elements + 7) / 8) : 0);
}

/// One block.
extern "C" __global__ void __launch_bounds__(PAYLOAD_THREADS) place_sections(PayloadParams p) {
  STATIC_SHARED(unsigned long long, scratch, PAYLOAD_THREADS / WARP_SIZE);
  unsigned long long before = 0;
  for (uint32_t first = 0; first < p.section_count; first += PAYLOAD_THREADS) {
    const uint32_t section = first + threadIdx.x;
    unsigned long long own = 0;
    if (section < p.section_count) {
      const CodecSection s = p.sections[section];
      own = s.gap + 8ull + 8ull * exceptions_of(p, section) + stream_bytes_of(p, section, s) + tail_bytes_of(p, s);
    }
    const unsigned long long through = before + block_sum_through(own, scratch);
    before += block_sum(own, scratch);
    if (section < p.section_count) p.begins[section] = through - own;
  }
  if (threadIdx.x == 0) p.begins[p.section_count] = before;
}
EXPORT_KERNEL(place_sections);

__device__ __forceinline__ uint32_t byte_of(uint32_t word, uint64_t index) { return word >> index % 4 * 8 & 255; }

/// Of what is kept as it is: low bits, or mantissas and signs.
__device__ __forceinline__ uint32_t tail_byte(const PayloadParams& p, uint32_t section, const CodecSection& s, uint64_t at) {
  if (p.is_lossless == 0) {
    const uint32_t plane_bytes = (s.token_count + 7) / 8, first = at % plane_bytes * 8;
    const uint32_t plane = p.planes[s.plane_begin + at / plane_bytes];
    const uint8_t* low = p.low + (static_cast<uint64_t>(section) * p.slots.lows + (plane & 0xffff)) * p.slots.stride;
    uint32_t byte = 0;
    for (uint32_t i = 0; i < 8 && first + i < s.token_count; i++) byte |= (low[first + i] >> (plane >> 16) & 1u) << i;
    return byte;
  }
  const uint8_t* from = p.packed + s.packed;
  if (p.dtype == CODEC_BF16) {
    const uint32_t bits = load_bits(from, at, p.dtype);
    return (bits >> 8 & 0x80) | (bits & 0x7f);
  }
  if (p.dtype == CODEC_F32) {
    const uint32_t bits = load_bits(from, at / 3, p.dtype);
    return at % 3 == 2 ? (bits >> 24 & 0x80) | (bits >> 16 & 0x7f) : bits >> at % 3 * 8 & 255;
  }
  const uint64_t elements = elements_of(p, s);
  if (at < elements) return load_bits(from, at, p.dtype) & 255;
  const uint64_t plane_bytes = (elements + 7) / 8, first = (at - elements) % plane_bytes * 8;
  // The sign is bit 2 of what is kept beside the byte, the upper bits of the mantissa are bits 0 and 1.
  const uint32_t plane = static_cast<uint32_t>((at - elements) / plane_bytes), shift = plane == 2 ? 15 : 8 + plane;
  uint32_t byte = 0;
  for (uint32_t i = 0; i < 8 && first + i < elements; i++) byte |= (load_bits(from, first + i, p.dtype) >> shift & 1) << i;
  return byte;
}

/// Byte `at` of a section, its gap included.
__device__ __forceinline__ uint32_t section_byte(const PayloadParams& p, uint32_t section, const CodecSection& s, uint64_t at) {
  if (at < s.gap) return 0;
  at -= s.gap;
  const uint32_t exceptions = exceptions_of(p, section);
  if (at < 4) return byte_of(stream_bytes_of(p, section, s), at);
  if (at < 8) return byte_of(exceptions, at);
  at -= 8;
  if (at < 8ull * exceptions) return byte_of(p.beyond[static_cast<uint64_t>(section) * p.beyond_max * 2 + at / 4], at);
  at -= 8ull * exceptions;
  const uint32_t state_bytes = 4 * min(s.token_count, 64u);
  if (at < state_bytes) return byte_of(p.states[section * 64 + at / 4], at);
  at -= state_bytes;
  const uint32_t slot = p.slots.axes * p.slots.stride, begin = p.words_begin[section];
  if (at < 2 * (slot - begin)) return p.words[static_cast<uint64_t>(section) * slot + begin + at / 2] >> at % 2 * 8 & 255;
  return tail_byte(p, section, s, at - 2 * (slot - begin));
}

/// Grid: x over 256 words of the payload's capacity.
extern "C" __global__ void __launch_bounds__(PAYLOAD_THREADS) write_payload(PayloadParams p) {
  const uint64_t word = static_cast<uint64_t>(blockIdx.x) * PAYLOAD_THREADS + threadIdx.x;
  const uint64_t end = p.begins[p.section_count];
  if (word * 4 >= end || (word + 1) * 4 > p.capacity) return;
  uint32_t low = 0, high = p.section_count;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    if (p.begins[middle] <= word * 4) {
      low = middle;
    } else {
      high = middle;
    }
  }
  CodecSection s = p.sections[low];
  uint32_t value = 0;
  for (uint32_t i = 0; i < 4 && word * 4 + i < end; i++) {
    const uint64_t at = word * 4 + i;
    // A section has at least the 8 bytes of its lengths, so that a word touches at most two.
    if (at >= p.begins[low + 1]) s = p.sections[++low];
    value |= section_byte(p, low, s, at - p.begins[low]) << 8 * i;
  }
  reinterpret_cast<uint32_t*>(p.payload)[word] = value;
}
EXPORT_KERNEL(write_payload);
