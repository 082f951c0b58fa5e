// Puts tokens that the step before chose into this step's ids, so that the host need not know them: ids[rows[i].row] = tokens[rows[i].from].
//
// Grid: one thread a row.

#include "device.cuh"

struct ChosenRow {
  uint32_t row;
  uint32_t from;
};

struct ChosenTokensParams {
  const uint32_t* tokens;
  const ChosenRow* rows;
  uint32_t* ids;
  uint32_t count;
};

extern "C" __global__ void __launch_bounds__(128) chosen_tokens(ChosenTokensParams p) {
  const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index < p.count) p.ids[p.rows[index].row] = p.tokens[p.rows[index].from];
}
EXPORT_KERNEL(chosen_tokens);
