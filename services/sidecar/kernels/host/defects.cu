// Kernels with one planted defect each: what the SIMT layer has to find. `defect` picks it; 0 is the right version.
//
// The kernel reverses the elements within each block of 64 threads through shared memory, and sums them over the block.

#include "../device.cuh"

struct DefectParams {
  const unsigned* in;
  unsigned* out;
  unsigned* sums;
  unsigned count;
  unsigned defect;
};

enum Defect : unsigned {
  NONE,
  NO_BARRIER,
  OFF_BY_ONE_WRITE,
  OFF_BY_ONE_READ,
  DIVERGENT_BARRIER,
  EARLY_EXIT,
  DIVERGENT_SHUFFLE,
  NO_ATOMIC,
  UNWRITTEN_SHARED,
  MISALIGNED,
  NO_WARP_BARRIER,
  NO_WAIT_FOR_COPY,
  SHARED_TOO_FAR,
  MISSED_OUTPUT,
  READ_AFTER_OTHER_BLOCK,
  NULL_POINTER,
};

extern "C" __global__ void planted_defect(DefectParams p) {
  STATIC_SHARED(unsigned, tile, 64);
  STATIC_SHARED(unsigned, warp_sums, 2);
  STATIC_SHARED(uint4, copied, 1);
  const unsigned thread = threadIdx.x, index = blockIdx.x * 64 + thread;
  if (p.defect == EARLY_EXIT && thread == 63) return;
  if (p.defect == NULL_POINTER && thread == 0) p.out = nullptr;

  const bool is_inside = index < p.count || (p.defect == OFF_BY_ONE_READ && index == p.count);
  const unsigned own = is_inside ? p.in[index] : 0;
  if (!(p.defect == UNWRITTEN_SHARED && thread == 5)) tile[thread + (p.defect == SHARED_TOO_FAR && thread == 63)] = own;
  if (p.defect == DIVERGENT_BARRIER && thread < 32) {
    __syncthreads();
  } else if (p.defect != NO_BARRIER) {
    __syncthreads();
  }
  const unsigned mirrored = tile[63 - thread];

  unsigned sum = own;
  for (int distance = 16; distance > 0; distance /= 2) {
    if (p.defect == DIVERGENT_SHUFFLE && thread == 7 && distance == 4) {
      sum += __shfl_xor_sync(~0u, sum, 4);
    } else {
      sum += __shfl_xor_sync(~0u, sum, distance);
    }
  }
  if (thread % 32 == 0) warp_sums[thread / 32] = sum;
  __syncthreads();

  // Lanes of one warp hand values around, with barriers of the warp alone.
  if (thread < 32) {
    tile[thread] = mirrored;
    if (p.defect != NO_WARP_BARRIER) __syncwarp();
    const unsigned turned = tile[(thread + 1) % 32];
    __syncwarp();
    tile[(thread + 1) % 32] = turned;
  }
  __syncthreads();

  if (thread == 0) {
    async_copy16(copied, p.in, true);
    async_commit();
    if (p.defect != NO_WAIT_FOR_COPY) async_wait<0>();
    const unsigned first = copied->x;
    if (p.defect == NO_WAIT_FOR_COPY) async_wait<0>();
    const unsigned total = warp_sums[0] + warp_sums[1] + first - p.in[0];
    if (p.defect == NO_ATOMIC) {
      p.sums[0] += total;
    } else {
      atomicAdd(p.sums, total);
    }
    if (p.defect == MISALIGNED) copied[0] = *reinterpret_cast<const uint4*>(p.in + 1);
    if (p.defect == READ_AFTER_OTHER_BLOCK && blockIdx.x > 0) p.sums[1] = p.out[0];
  }
  const unsigned result = thread < 32 ? tile[thread] : mirrored;
  if (index < p.count + (p.defect == OFF_BY_ONE_WRITE) && !(p.defect == MISSED_OUTPUT && index == 9)) p.out[index] = result;
}
EXPORT_KERNEL(planted_defect);
