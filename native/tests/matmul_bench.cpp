// GB/s of weights that matmul_strip reads, per format, rows, size and threads: matmul_bench [format] [isa]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>

#include "cpu.h"
#include "memory.h"
#include "thread_pool.h"

namespace {

using Clock = std::chrono::steady_clock;
using outpace::Format;

constexpr int64_t kColumns = 1536, kMaxRows = 32;
constexpr struct {
  Format format;
  const char* name;
} kFormats[] = {{Format::bf16, "bf16"}, {Format::q4_0, "q4_0"}, {Format::q4_1, "q4_1"},
                {Format::q5_0, "q5_0"}, {Format::q5_1, "q5_1"}, {Format::q8_0, "q8_0"},
                {Format::q4_k, "q4_k"}, {Format::q5_k, "q5_k"}, {Format::q6_k, "q6_k"}};

// Rows of activations without wide cells.
struct Inputs {
  std::vector<float> x, scale32, scaled_sum, scale256;
  std::vector<int8_t> q32, q256;
  std::vector<int32_t> sum32, sum16, num_wide, wide;
  std::vector<int16_t> pair_sum;

  explicit Inputs(const outpace::Kernels& kernels) {
    const auto resize = [](auto& v, int64_t per) {
      v.resize(static_cast<size_t>(kMaxRows * kColumns / per));
    };
    for (auto* v : {&q32, &q256}) resize(*v, 1);
    for (auto* v : {&scale32, &scaled_sum, &scale256}) resize(*v, 32);
    for (auto* v : {&sum32, &sum16}) resize(*v, 16);
    resize(x, 1);
    resize(pair_sum, 32);
    resize(wide, 32);
    num_wide.resize(kMaxRows);
    for (size_t i = 0; i < x.size(); ++i)
      x[i] = static_cast<float>(static_cast<int>(i * 2654435761u % 201) - 100) / 100.0f;
    for (int64_t r = 0; r < kMaxRows; ++r) {
      kernels.quantize_32(x.data() + r * kColumns, kColumns, at(r).per_32);
      kernels.quantize_256(x.data() + r * kColumns, kColumns, at(r).per_256);
    }
  }

  outpace::Activations at(int64_t r) {
    outpace::Activations a;
    a.columns = a.stride_x = kColumns;
    a.x = x.data();
    const int64_t groups = r * (kColumns / 32), blocks = r * (kColumns / 256);
    a.per_32.high = {q32.data() + r * kColumns, scale32.data() + groups, sum32.data() + groups,
                     scaled_sum.data() + groups, nullptr};
    a.per_256.high = {q256.data() + r * kColumns, scale256.data() + blocks, sum16.data() + 2 * groups,
                      nullptr, pair_sum.data() + groups};
    a.per_32.low = a.per_32.high;  // not used: nothing is wide
    a.per_256.low = a.per_256.high;
    a.per_32.num_wide = a.per_256.num_wide = num_wide.data() + r;
    a.per_32.wide = a.per_256.wide = wide.data();
    return a;
  }
};

// The best of several passes over the whole matrix.
double measure(const outpace::Kernels& kernels, outpace::ThreadPool& pool, const outpace::TileMatrix& m,
               const outpace::Activations& a, int64_t rows, std::vector<float>& out) {
  const auto bytes = static_cast<double>(m.total_bytes());
  const int64_t grain = std::max<int64_t>(1, m.num_strips() / (pool.num_threads() * 8));
  double best = 0.0, spent = 0.0;
  for (int pass = 0; pass < 3 || (spent < 0.08 && pass < 300); ++pass) {
    const auto start = Clock::now();
    pool.run([&](int) {
      pool.parallel(m.num_strips(), grain, [&](int64_t first, int64_t last) {
        for (int64_t s = first; s < last; ++s)
          kernels.matmul_strip(m, s, a, rows, out.data() + s * outpace::kStrip, m.padded_rows());
      });
    });
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, bytes / seconds / 1e9);
    spent += seconds;
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const outpace::Kernels& kernels = outpace::select_kernels(argc > 2 ? argv[2] : "auto");
  Inputs inputs(kernels);
  std::printf("GB/s of weights, %lld inputs, tier %s\n", static_cast<long long>(kColumns), kernels.name);
  std::printf("%-6s %8s %8s", "format", "size", "threads");
  for (int64_t rows = 1; rows <= kMaxRows; rows *= 2) std::printf(" %6lld", static_cast<long long>(rows));
  std::printf("  rows\n");
  for (const auto& f : kFormats) {
    if (argc > 1 && std::strcmp(argv[1], "all") != 0 && std::strcmp(argv[1], f.name) != 0) continue;
    for (const double megabytes : {0.5, 90.0}) {
      outpace::TileMatrix m = outpace::tile_shape(f.format, outpace::kStrip, kColumns);
      m.rows = std::max<int64_t>(2, static_cast<int64_t>(megabytes * 1e6) / m.strip_bytes) * outpace::kStrip;
      const outpace::HugeBuffer memory(static_cast<uint64_t>(m.total_bytes()), "the benchmark");
      m.data = memory.data();
      std::memset(m.data, 0x11, static_cast<size_t>(m.total_bytes()));  // small numbers in every format
      std::vector<float> out(static_cast<size_t>(kMaxRows * m.padded_rows()));
      for (const int threads : {1, 2}) {
        outpace::ThreadPool pool(threads);
        std::printf("%-6s %5.1f MB %8d", f.name, megabytes, threads);
        for (int64_t rows = 1; rows <= kMaxRows; rows *= 2) {
          std::printf(" %6.1f", measure(kernels, pool, m, inputs.at(0), rows, out));
          std::fflush(stdout);
        }
        std::printf("\n");
      }
    }
  }
  return 0;
}
