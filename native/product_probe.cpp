#include "product_probe.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "trace.h"

namespace outpace {

namespace {

using Clock = std::chrono::steady_clock;

// Strips of one format and length, `like` being a matrix of such.
struct Strips {
  const TileMatrix* like;
  int64_t count;
};

// A strip's share of two, of one thread, while all do the same: the best of a few passes of a millisecond.
double strip_seconds(const TileMatrix& m, int64_t num_rows, const Kernels& kernels, ThreadPool& pool) {
  SampleRows rows(num_rows, m.columns, kernels);
  const Activations a = rows.from(0);
  const int64_t strips = std::min(Forward::kStripsAtOnce, m.num_strips());
  const auto size = static_cast<size_t>(num_rows * strips * kStrip);
  std::vector<LineVector<float>> out(static_cast<size_t>(pool.num_threads()), LineVector<float>(size));
  double best = 1e9;
  int64_t count = 1;
  for (int pass = 0; pass < 5;) {
    const auto start = Clock::now();
    pool.run([&](int thread) {
      float* to = out[static_cast<size_t>(thread)].data();
      for (int64_t i = 0; i < count; ++i)
        kernels.matmul_strips(m, 0, strips, a, num_rows, to, strips * kStrip);
    });
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (seconds < 1e-3) {
      count *= 2;
      continue;
    }
    best = std::min(best, seconds / static_cast<double>(count * strips));
    ++pass;
  }
  return best;
}

}  // namespace

SampleRows::SampleRows(int64_t num_rows, int64_t num_columns, const Kernels& kernels)
    : columns(num_columns), stride(row_stride<float>(columns)) {
  x.resize(static_cast<size_t>(num_rows * stride));
  per_32.resize(num_rows, columns);
  per_256.resize(num_rows, columns);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i));
  for (int64_t r = 0; r < num_rows; ++r) {
    const Activations row = from(r);
    if (columns % kGroup == 0) kernels.quantize_32(row.x, columns, row.per_32);
    if (columns % kSuperBlock == 0) kernels.quantize_256(row.x, columns, row.per_256);
  }
}

Activations SampleRows::from(int64_t row) {
  return {columns, x.data() + row * stride, stride, per_32.at(row, columns, kGroup),
          per_256.at(row, columns, kSuperBlock)};
}

std::array<double, kNumOps> product_seconds(const Weights& weights, const StepTrace& trace,
                                            const Kernels& kernels, ThreadPool& pool) {
  std::vector<Strips> strips[kNumOps];
  int64_t num_weights[kNumOps] = {};
  each_matrix(weights, weights.output, [&](Op op, const TileMatrix& m) {
    auto& of_op = strips[static_cast<int>(op)];
    num_weights[static_cast<int>(op)] += m.rows * m.columns;
    const auto same = std::find_if(of_op.begin(), of_op.end(), [&](const Strips& s) {
      return s.like->format == m.format && s.like->columns == m.columns;
    });
    if (same == of_op.end())
      of_op.push_back({&m, m.num_strips()});
    else
      same->count += m.num_strips();
  });
  std::array<double, kNumOps> seconds = {};
  for (int op = 0; op < kNumOps; ++op) {
    const auto num_macs = static_cast<int64_t>(trace.ops[op].num_macs);
    if (num_weights[op] == 0 || num_macs == 0) continue;
    const int64_t num_rows = std::max<int64_t>(1, num_macs / num_weights[op]);
    for (const auto& [like, count] : strips[op]) {
      const int64_t together = std::min(num_rows, Forward::rows_together(num_rows, like->columns));
      const double passes = static_cast<double>(num_rows) / static_cast<double>(together);
      seconds[static_cast<size_t>(op)] += passes * static_cast<double>(count) *
                                          strip_seconds(*like, together, kernels, pool) / pool.num_threads();
    }
  }
  return seconds;
}

}  // namespace outpace
