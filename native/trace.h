// Where a step's time goes: one clock that thread 0 reads at the end of each operation, and the work that
// each operation has at least.
#pragma once

#include <chrono>
#include <vector>

#include "api.h"
#include "kernels/kernels.h"
#include "weights.h"

namespace outpace {

struct Row;

// Gives the time since the last look to an operation. A look costs about 30 ns, and a step of a small model
// has 300 of them: a few tenths of a per cent, and nothing unless a trace is asked for.
class StepClock {
 public:
  // A step begins: everything is counted from here.
  void start();
  // What ran since the last look was `op`.
  void mark(Op op);
  const StepTrace& trace() const { return trace_; }
  StepTrace& trace() { return trace_; }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point started_, last_;
  StepTrace trace_;
};

// Calls take(operation, matrix) for every matrix of a step, `output` being that of the last operation.
template <class Take>
void each_matrix(const Weights& weights, const TileMatrix& output, Take take) {
  for (const LayerWeights& w : weights.layers) {
    for (const TileMatrix* m : {&w.q, &w.k, &w.v}) take(Op::qkv, *m);
    take(Op::o, w.o);
    for (const TileMatrix* m : {&w.gate, &w.up}) take(Op::gate_up, *m);
    take(Op::down, w.down);
  }
  take(Op::output, output);
}

// Fills in what the step's operations have to read and to multiply: every weight once, the keys and values
// of each request once.
// `output`: the rows of the weights' `output` that were multiplied.
void count_work(const ModelSpec& spec, const Weights& weights, const TileMatrix& output, const KVLayout& kv,
                const std::vector<Row>& rows, int64_t num_sampled, StepTrace& trace);

}  // namespace outpace
