// GB/s of weights that matmul_strips reads, per format, rows, size and threads:
// matmul_bench [format, or all] [isa, or auto] [inputs, a multiple of 256] [seconds for a figure]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "cpu.h"
#include "memory.h"
#include "product_probe.h"
#include "thread_pool.h"

namespace {

using Clock = std::chrono::steady_clock;
using outpace::Format;

constexpr int64_t kMaxRows = 32;
constexpr struct {
  Format format;
  const char* name;
} kFormats[] = {{Format::f32, "f32"},   {Format::f16, "f16"},   {Format::bf16, "bf16"},
                {Format::q4_0, "q4_0"}, {Format::q4_1, "q4_1"}, {Format::q5_0, "q5_0"},
                {Format::q5_1, "q5_1"}, {Format::q8_0, "q8_0"}, {Format::q4_k, "q4_k"},
                {Format::q5_k, "q5_k"}, {Format::q6_k, "q6_k"}};

// The best of several passes over the whole matrix.
double measure(const outpace::Kernels& kernels, outpace::ThreadPool& pool, const outpace::TileMatrix& m,
               const outpace::Activations& a, int64_t rows, double at_least, std::vector<float>& out) {
  const auto bytes = static_cast<double>(m.total_bytes());
  const int64_t grain = std::max<int64_t>(2, m.num_strips() / (pool.num_threads() * 8) / 2 * 2);
  double best = 0.0, spent = 0.0;
  for (int pass = 0; pass < 1 || (spent < at_least && pass < 300); ++pass) {
    const auto start = Clock::now();
    pool.run([&](int) {
      pool.parallel(m.num_strips(), grain, [&](int64_t first, int64_t last) {
        kernels.matmul_strips(m, first, last, a, rows, out.data() + first * outpace::kStrip, m.padded_rows());
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
  const int64_t columns = argc > 3 ? std::atoll(argv[3]) : 1536;
  const double at_least = argc > 4 ? std::atof(argv[4]) : 0.08;
  outpace::SampleRows rows_of_inputs(kMaxRows, columns, kernels);
  const outpace::Activations inputs = rows_of_inputs.from(0);
  std::printf("GB/s of weights, %lld inputs, tier %s\n", static_cast<long long>(columns), kernels.name);
  std::printf("%-6s %8s %8s", "format", "size", "threads");
  for (int64_t rows = 1; rows <= kMaxRows; rows *= 2) std::printf(" %6lld", static_cast<long long>(rows));
  std::printf("  rows\n");
  for (const auto& f : kFormats) {
    if (argc > 1 && std::strcmp(argv[1], "all") != 0 && std::strcmp(argv[1], f.name) != 0) continue;
    for (const double megabytes : {0.5, 90.0}) {
      outpace::TileMatrix m = outpace::tile_shape(f.format, outpace::kStrip, columns);
      m.rows = std::max<int64_t>(2, static_cast<int64_t>(megabytes * 1e6) / m.strip_bytes) * outpace::kStrip;
      const outpace::HugeBuffer memory(static_cast<uint64_t>(m.total_bytes()), "the benchmark");
      m.data = memory.data();
      std::memset(m.data, 0x11, static_cast<size_t>(m.total_bytes()));  // small numbers in every format
      std::vector<float> out(static_cast<size_t>(kMaxRows * m.padded_rows()));
      for (const int threads : {1, 2}) {
        outpace::ThreadPool pool(threads);
        std::printf("%-6s %5.1f MB %8d", f.name, megabytes, threads);
        for (int64_t rows = 1; rows <= kMaxRows; rows *= 2) {
          std::printf(" %6.1f", measure(kernels, pool, m, inputs, rows, at_least, out));
          std::fflush(stdout);
        }
        std::printf("\n");
      }
    }
  }
  return 0;
}
