// Cycles (of the processor's time stamp) of all that is no matrix product: rows_bench [isa, or auto]
// [seconds]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "cpu.h"
#include "forward.h"
#include "kv_cache.h"
#include "memory.h"
#include "sampler.h"

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

constexpr int64_t kColumns = 1536, kRopeDim = 64, kVocabulary = 151936;

using outpace::Format;
using outpace::Kernels;
using outpace::KVFormat;

// The heads of a model that share a KV head.
struct HeadGroup {
  int64_t head_dim, heads;
};

constexpr int64_t kBlocksApart = 56;  // of the KV cache: 28 layers of 2 heads lie between

uint64_t long_enough = uint64_t{1} << 30;  // ticks

// The quickest of many times kRuns runs: the time stamp's steps are longer than some of them.
void report(const char* what, int64_t per, const std::function<void()>& run) {
  constexpr int kRuns = 32;
  uint64_t best = ~uint64_t{0}, spent = 0;
  for (int pass = 0; pass < 200 && (pass == 0 || spent < long_enough); ++pass) {
    const uint64_t start = ticks();
    for (int i = 0; i < kRuns; ++i) run();
    const uint64_t took = ticks() - start;
    best = std::min(best, took);
    spent += took;
  }
  const double cycles = static_cast<double>(best) / kRuns;
  std::printf("%-34s %9.0f cycles %8.2f each\n", what, cycles, cycles / static_cast<double>(per));
}

const char* name_of(KVFormat format) { return format == KVFormat::int8 ? "int8" : "f16"; }

// Rows that see the same tokens, as a thread takes them: chunk by chunk, each chunk's results into one place.
void attention(const Kernels& kernels, std::mt19937& random, KVFormat format, const HeadGroup& group,
               int64_t tokens, int64_t rows) {
  const auto [head_dim, heads] = group;
  outpace::ModelSpec spec;
  spec.head_dim = head_dim;
  const outpace::KVLayout layout = outpace::kv_layout(spec, format);
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
  std::snprintf(what, sizeof what, "attend_rows %s %2d x %4d, %d of %3d", name_of(format),
                static_cast<int>(rows), static_cast<int>(tokens), static_cast<int>(heads),
                static_cast<int>(head_dim));
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

std::vector<float> normals(std::mt19937& random, int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> all(static_cast<size_t>(n));
  for (float& v : all) v = normal(random);
  return all;
}

// What a layer does with a row of activations.
void activations(const Kernels& kernels, std::mt19937& random) {
  const std::vector<float> x = normals(random, kColumns), y = normals(random, kColumns);
  std::vector<float> out = x;
  outpace::QuantizedRows integers;
  integers.resize(1, kColumns);
  const auto each = [&](const char* what, const auto& run) { report(what, kColumns, run); };
  each("quantize_32", [&] { kernels.quantize_32(x.data(), kColumns, integers.at(0, kColumns, 32)); });
  each("quantize_256", [&] { kernels.quantize_256(x.data(), kColumns, integers.at(0, kColumns, 256)); });
  each("rms_norm", [&] { kernels.rms_norm(x.data(), y.data(), kColumns, 1e-5f, out.data()); });
  each("add", [&] { kernels.add(out.data(), x.data(), kColumns); });
  each("scale", [&] { kernels.scale(out.data(), 1.0f, kColumns); });
  each("silu_mul", [&] { kernels.silu_mul(x.data(), y.data(), kColumns, out.data()); });
  each("gelu_mul", [&] { kernels.gelu_mul(x.data(), y.data(), kColumns, out.data()); });
}

// What attention does with one head of a row but attend.
void head(const Kernels& kernels, std::mt19937& random) {
  const std::vector<float> x = normals(random, kRopeDim), y = normals(random, kRopeDim);
  std::vector<float> out = x;
  const auto each = [&](const char* what, const auto& run) { report(what, kRopeDim, run); };
  each("rope", [&] { kernels.rope(out.data(), x.data(), y.data(), kRopeDim / 2, false); });
  std::vector<int8_t> high(kRopeDim), low(kRopeDim);
  float unit = 0.0f, max = 0.0f, weight_sum = 1.0f;
  int32_t sum = 0;
  each("quantize_query",
       [&] { kernels.quantize_query(x.data(), kRopeDim, high.data(), low.data(), &unit, &sum); });
  each("merge_attention", [&] {
    kernels.merge_attention(out.data(), &max, &weight_sum, x.data(), -1.0f, 1.0f, kRopeDim);
    weight_sum = 1.0f;
  });
  outpace::ModelSpec spec;
  spec.head_dim = kRopeDim;
  for (const KVFormat format : {KVFormat::int8, KVFormat::f16}) {
    const outpace::KVLayout layout = outpace::kv_layout(spec, format);
    std::vector<uint8_t> block(static_cast<size_t>(layout.bytes));
    each((std::string("write_kv ") + name_of(format)).c_str(),
         [&] { kernels.write_kv(layout, block.data(), 5, x.data(), y.data()); });
  }
}

// What is done with a row of logits.
void logits(const Kernels& kernels, std::mt19937& random) {
  const std::vector<float> x = normals(random, kVocabulary);
  std::vector<float> out = x;
  const auto each = [&](const char* what, const auto& run) { report(what, kVocabulary, run); };
  double sink = 0.0;
  each("softcap", [&] { kernels.softcap(out.data(), 30.0f, kVocabulary); });
  each("argmax", [&] { sink += static_cast<double>(kernels.argmax(x.data(), kVocabulary)); });
  each("log_sum_exp", [&] { sink += kernels.log_sum_exp(x.data(), kVocabulary); });
  each("exp", [&] { kernels.exp(x.data(), 4.0f, kVocabulary, out.data()); });
  outpace::Sampling sampling{7, 0.8f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, -1, 0, 0};
  out = x;
  int64_t position = 0;
  each("sample at a temperature",
       [&] { sink += outpace::sample(kernels, out.data(), kVocabulary, {&sampling, ++position}).token_id; });
  if (std::isnan(sink)) std::printf("not a number\n");
}

// From a file's rows to strips, and one row back, per weight.
void weights(const Kernels& kernels) {
  for (const auto& [format, name, bytes] : {std::tuple{Format::q4_1, "Q4_1", kColumns / 32 * 20},
                                            std::tuple{Format::q4_k, "Q4_K", kColumns / 256 * 144},
                                            std::tuple{Format::q6_k, "Q6_K", kColumns / 256 * 210}}) {
    outpace::TileMatrix m = outpace::tile_shape(format, outpace::kStrip, kColumns);
    const outpace::HugeBuffer strip(static_cast<uint64_t>(m.total_bytes()), "the benchmark");
    m.data = strip.data();
    const std::vector<uint8_t> row(static_cast<size_t>(bytes), 0x11);
    const uint8_t* rows[outpace::kStrip];
    std::fill(std::begin(rows), std::end(rows), row.data());
    std::vector<float> out(kColumns);
    report((std::string("pack_strip ") + name).c_str(), kColumns * outpace::kStrip,
           [&] { kernels.pack_strip(m, rows, m.data); });
    report((std::string("dequantize_row ") + name).c_str(), kColumns,
           [&] { kernels.dequantize_row(m, 3, out.data()); });
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Kernels& kernels = outpace::select_kernels(argc > 1 ? argv[1] : "auto");
  if (argc > 2) long_enough = static_cast<uint64_t>(std::atof(argv[2]) * 3e9);
  std::printf("tier %s; each: of a value, or of a row, token and head\n", kernels.name);
  std::mt19937 random(1);
  activations(kernels, random);
  head(kernels, random);
  logits(kernels, random);
  weights(kernels);
  for (const KVFormat format : {KVFormat::int8, KVFormat::f16}) {
    for (const HeadGroup& group : {HeadGroup{64, 3}, HeadGroup{64, 7}, HeadGroup{128, 6}}) {
      for (const int64_t tokens : {16, 128, 4096}) {
        for (const int64_t rows : {1, 16}) attention(kernels, random, format, group, tokens, rows);
      }
    }
  }
  return 0;
}
