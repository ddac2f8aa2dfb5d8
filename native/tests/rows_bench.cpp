// Cycles (of the processor's time stamp) of the row-wise operations and of attention: rows_bench [isa]
#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "cpu.h"
#include "kv_cache.h"

#if defined(__x86_64__)
#include <x86intrin.h>
static uint64_t ticks() { return __rdtsc(); }
#else
static uint64_t ticks() {
  uint64_t t;
  asm volatile("mrs %0, cntvct_el0" : "=r"(t));
  return t;
}
#endif

namespace {

constexpr int64_t kColumns = 1536, kHeadDim = 64, kHeads = 3;

// The quickest of many times kRuns runs: the time stamp's steps are longer than some of them.
void report(const char* what, int64_t per, const std::function<void()>& run) {
  constexpr int kRuns = 32;
  uint64_t best = ~uint64_t{0};
  for (int pass = 0; pass < 200; ++pass) {
    const uint64_t start = ticks();
    for (int i = 0; i < kRuns; ++i) run();
    best = std::min(best, ticks() - start);
  }
  const double cycles = static_cast<double>(best) / kRuns;
  std::printf("%-28s %8.0f cycles %8.2f each\n", what, cycles, cycles / static_cast<double>(per));
}

// One row of quantized activations.
struct Memory {
  std::vector<int8_t> q[2];
  std::vector<float> scale[2], scaled_sum[2];
  std::vector<int32_t> sum[2], wide;
  std::vector<int16_t> pair_sum[2];
  int32_t num_wide = 0;

  Memory() {
    for (int p = 0; p < 2; ++p) {
      q[p].resize(kColumns);
      scale[p].resize(kColumns / 32);
      scaled_sum[p].resize(kColumns / 32);
      sum[p].resize(kColumns / 16);
      pair_sum[p].resize(kColumns / 32);
    }
    wide.resize(kColumns / 32);
  }
  outpace::Quantized at() {
    const auto plane = [&](int p) {
      return outpace::Plane{q[p].data(), scale[p].data(), sum[p].data(), scaled_sum[p].data(),
                            pair_sum[p].data()};
    };
    return {plane(0), plane(1), &num_wide, wide.data()};
  }
};

void attention(const outpace::Kernels& kernels, std::mt19937& random, int64_t tokens, int64_t rows) {
  outpace::ModelSpec spec;
  spec.head_dim = kHeadDim;
  const outpace::KVLayout layout = outpace::kv_layout(spec, outpace::KVFormat::int8);
  std::vector<uint8_t> cache(static_cast<size_t>(layout.bytes * 8));
  std::vector<int32_t> table{0, 1, 2, 3, 4, 5};
  std::normal_distribution<float> normal;
  std::vector<float> k(kHeadDim), v(kHeadDim);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < kHeadDim; ++i) {
      k[static_cast<size_t>(i)] = normal(random);
      v[static_cast<size_t>(i)] = normal(random);
    }
    kernels.write_kv(layout, cache.data() + t / 32 * layout.bytes, t % 32, k.data(), v.data());
  }
  const auto size = static_cast<size_t>(rows * kHeads * kHeadDim);
  std::vector<float> query(size), out(size), max(size), sum(size), unit(size);
  std::vector<int8_t> high(size), low(size);
  std::vector<int32_t> query_sum(size);
  for (float& q : query) q = normal(random) / 8.0f;
  std::vector<outpace::AttentionTask> tasks;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t head = r * kHeads;
    for (int64_t h = head; h < head + kHeads; ++h) {
      kernels.quantize_query(query.data() + h * kHeadDim, kHeadDim, high.data() + h * kHeadDim,
                             low.data() + h * kHeadDim, unit.data() + h, query_sum.data() + h);
    }
    outpace::AttentionTask task{};
    task.layout = &layout;
    task.blocks = cache.data();
    task.block_stride = layout.bytes;
    task.block_table = table.data();
    task.end = tokens;
    task.num_heads = kHeads;
    task.query = query.data() + head * kHeadDim;
    task.query_high = high.data() + head * kHeadDim;
    task.query_low = low.data() + head * kHeadDim;
    task.query_unit = unit.data() + head;
    task.query_sum = query_sum.data() + head;
    task.out = out.data() + head * kHeadDim;
    task.max = max.data() + head;
    task.sum = sum.data() + head;
    tasks.push_back(task);
  }
  char what[64];
  std::snprintf(what, sizeof what, "attend_rows %lld x %lld tokens", static_cast<long long>(rows),
                static_cast<long long>(tokens));
  report(what, rows * tokens * kHeads, [&] { kernels.attend_rows(tasks.data(), rows); });
}

}  // namespace

int main(int argc, char** argv) {
  const outpace::Kernels& kernels = outpace::select_kernels(argc > 1 ? argv[1] : "auto");
  std::printf("tier %s; each: of a value, or of a row, token and head of %lld channels\n", kernels.name,
              static_cast<long long>(kHeadDim));
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(kColumns), y(kColumns), out(kColumns);
  for (float& v : x) v = normal(random);
  for (float& v : y) v = normal(random);
  Memory memory;
  const outpace::Quantized quantized = memory.at();
  report("quantize_32", kColumns, [&] { kernels.quantize_32(x.data(), kColumns, quantized); });
  report("quantize_256", kColumns, [&] { kernels.quantize_256(x.data(), kColumns, quantized); });
  report("rms_norm", kColumns, [&] { kernels.rms_norm(x.data(), y.data(), kColumns, 1e-5f, out.data()); });
  report("silu_mul", kColumns, [&] { kernels.silu_mul(x.data(), y.data(), kColumns, out.data()); });
  report("rope", kHeadDim, [&] { kernels.rope(out.data(), x.data(), y.data(), kHeadDim / 2, false); });
  std::vector<int8_t> high(kHeadDim), low(kHeadDim);
  float unit = 0.0f;
  int32_t sum = 0;
  report("quantize_query", kHeadDim,
         [&] { kernels.quantize_query(x.data(), kHeadDim, high.data(), low.data(), &unit, &sum); });
  for (const int64_t tokens : {16, 128}) {
    for (const int64_t rows : {1, 16}) attention(kernels, random, tokens, rows);
  }
  return 0;
}
