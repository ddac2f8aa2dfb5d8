// Cycles (of the processor's time stamp) of the row-wise operations and of attention: rows_bench [isa]
#include <algorithm>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "cpu.h"
#include "kv_cache.h"
#include "memory.h"

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

constexpr int64_t kColumns = 1536, kRopeDim = 64;

// The heads of a model that share a KV head.
struct HeadGroup {
  int64_t head_dim, heads;
};

constexpr int64_t kBlocksApart = 56;  // of the KV cache: 28 layers of 2 heads lie between

// The quickest of many times kRuns runs: the time stamp's steps are longer than some of them.
void report(const char* what, int64_t per, const std::function<void()>& run) {
  constexpr int kRuns = 32;
  constexpr uint64_t kLong = uint64_t{1} << 30;  // ticks
  uint64_t best = ~uint64_t{0}, spent = 0;
  for (int pass = 0; pass < 200 && spent < kLong; ++pass) {
    const uint64_t start = ticks();
    for (int i = 0; i < kRuns; ++i) run();
    const uint64_t took = ticks() - start;
    best = std::min(best, took);
    spent += took;
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
      return outpace::Plane{q[p].data(),          kColumns,          scale[p].data(), sum[p].data(),
                            scaled_sum[p].data(), pair_sum[p].data()};
    };
    return {plane(0), plane(1), &num_wide, wide.data()};
  }
};

// Rows that see the same tokens, as a thread takes them: chunk by chunk, each chunk's results into one place.
void attention(const outpace::Kernels& kernels, std::mt19937& random, const HeadGroup& group, int64_t tokens,
               int64_t rows) {
  const auto [head_dim, heads] = group;
  outpace::ModelSpec spec;
  spec.head_dim = head_dim;
  const outpace::KVLayout layout = outpace::kv_layout(spec, outpace::KVFormat::int8);
  const int64_t num_blocks = (tokens + outpace::kBlockTokens - 1) / outpace::kBlockTokens;
  const int64_t stride = kBlocksApart * layout.bytes;
  const outpace::HugeBuffer cache(static_cast<uint64_t>(num_blocks * stride), "the benchmark");
  std::vector<int32_t> table(static_cast<size_t>(num_blocks));
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), random);
  std::normal_distribution<float> normal;
  std::vector<float> k(static_cast<size_t>(head_dim)), v(static_cast<size_t>(head_dim));
  for (int64_t t = 0; t < tokens; ++t) {
    for (float& x : k) x = normal(random);
    for (float& x : v) x = normal(random);
    uint8_t* block = cache.data() + table[static_cast<size_t>(t / outpace::kBlockTokens)] * stride;
    kernels.write_kv(layout, block, t % outpace::kBlockTokens, k.data(), v.data());
  }
  const auto size = static_cast<size_t>(rows * heads * head_dim);
  std::vector<float> query(size), out(size), max(size), sum(size), unit(size);
  std::vector<int8_t> high(size), low(size);
  std::vector<int32_t> query_sum(size);
  for (float& q : query) q = normal(random) / 8.0f;
  std::vector<outpace::AttentionTask> tasks;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t head = r * heads;
    for (int64_t h = head; h < head + heads; ++h) {
      kernels.quantize_query(query.data() + h * head_dim, head_dim, high.data() + h * head_dim,
                             low.data() + h * head_dim, unit.data() + h, query_sum.data() + h);
    }
    outpace::AttentionTask task{};
    task.layout = &layout;
    task.blocks = cache.data();
    task.block_stride = stride;
    task.block_table = table.data();
    task.num_heads = heads;
    task.query = query.data() + head * head_dim;
    task.query_high = high.data() + head * head_dim;
    task.query_low = low.data() + head * head_dim;
    task.query_unit = unit.data() + head;
    task.query_sum = query_sum.data() + head;
    task.out = out.data() + head * head_dim;
    task.max = max.data() + head;
    task.sum = sum.data() + head;
    tasks.push_back(task);
  }
  char what[64];
  std::snprintf(what, sizeof what, "attend_rows %2d x %4d, %d of %3d", static_cast<int>(rows),
                static_cast<int>(tokens), static_cast<int>(heads), static_cast<int>(head_dim));
  report(what, rows * tokens * heads, [&] {
    for (int64_t begin = 0; begin < tokens; begin += outpace::kAttentionChunk) {
      const int64_t end = std::min(tokens, begin + outpace::kAttentionChunk);
      for (outpace::AttentionTask& task : tasks) {
        task.begin = begin;
        task.end = end;
        task.merge = begin > 0;
        task.next_blocks = table.data() + end / outpace::kBlockTokens;
        task.num_next_blocks =
            &task == tasks.data()
                ? std::clamp<int64_t>(num_blocks - end / outpace::kBlockTokens, 0, outpace::kBlocksPerChunk)
                : 0;
      }
      kernels.attend_rows(tasks.data(), rows);
    }
  });
}

}  // namespace

int main(int argc, char** argv) {
  const outpace::Kernels& kernels = outpace::select_kernels(argc > 1 ? argv[1] : "auto");
  std::printf("tier %s; each: of a value, or of a row, token and head\n", kernels.name);
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
  report("rope", kRopeDim, [&] { kernels.rope(out.data(), x.data(), y.data(), kRopeDim / 2, false); });
  std::vector<int8_t> high(kRopeDim), low(kRopeDim);
  float unit = 0.0f;
  int32_t sum = 0;
  report("quantize_query", kRopeDim,
         [&] { kernels.quantize_query(x.data(), kRopeDim, high.data(), low.data(), &unit, &sum); });
  for (const HeadGroup& group : {HeadGroup{64, 3}, HeadGroup{64, 7}, HeadGroup{128, 6}}) {
    for (const int64_t tokens : {16, 128, 4096}) {
      for (const int64_t rows : {1, 16}) attention(kernels, random, group, tokens, rows);
    }
  }
  return 0;
}
