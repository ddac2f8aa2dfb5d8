// What a step's matrix products take where nothing has to be fetched: the limit of their kernels.
#pragma once

#include <array>

#include "api.h"
#include "forward.h"
#include "kernels/kernels.h"
#include "thread_pool.h"
#include "weights.h"

namespace outpace {

// Rows of activations as a step has them, without wide cells, in every form that their width allows.
struct SampleRows {
  const int64_t columns, stride;
  LineVector<float> x;
  QuantizedRows per_32, per_256;

  SampleRows(int64_t num_rows, int64_t columns, const Kernels& kernels);
  Activations from(int64_t row);
};

// Seconds that each operation's products of the traced step would take, with two strips of its weights and
// the activations in the nearest caches, on all threads at once; 0: it has none.
std::array<double, kNumOps> product_seconds(const Weights& weights, const StepTrace& trace,
                                            const Kernels& kernels, ThreadPool& pool);

}  // namespace outpace
