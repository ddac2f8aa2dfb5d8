// What the machine can do at best: how fast it reads, multiplies and ticks.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "api.h"
#include "cpu.h"
#include "memory.h"
#include "thread_pool.h"

namespace outpace {

namespace {

using Clock = std::chrono::steady_clock;

// Units per second over all threads, the best of `repeats` passes; work(n) does n rounds of something and
// returns the units that it did. A pass takes at least 5 ms.
template <class Work>
double best_rate(int num_threads, int repeats, const Work& work) {
  ThreadPool pool(std::max(1, num_threads));
  double best = 0.0;
  int64_t rounds = 1 << 10;
  for (int i = 0; i < repeats;) {
    std::atomic<int64_t> units{0};
    const auto start = Clock::now();
    pool.run([&](int) { units += work(rounds); });
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (seconds < 5e-3) {
      rounds *= 2;
      continue;
    }
    best = std::max(best, static_cast<double>(units.load()) / seconds);
    ++i;
  }
  return best;
}

}  // namespace

double int8_peak(const std::string& isa, int num_threads, int repeats) {
  const Kernels& kernels = select_kernels(isa);
  return best_rate(num_threads, repeats, kernels.dot_peak);
}

double clock_rate(int num_threads, int repeats) {
  // A chain of additions, a cycle each: of registers, because some cores do those of constants for nothing,
  // and unrolled, because a short loop's jumps cost a few per cent.
  const auto chain = [](int64_t rounds) {
    constexpr int kAdditions = 64;
    uint64_t sum = 0, step = 1;
    asm volatile("" : "+r"(step));
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 64
      for (int k = 0; k < kAdditions; ++k) {
        sum += step;
        asm volatile("" : "+r"(sum));
      }
    }
    return rounds * kAdditions;
  };
  return best_rate(num_threads, repeats, chain) / std::max(1, num_threads);
}

double read_bandwidth(uint64_t num_bytes, int num_threads, int repeats) {
  const int64_t lines = static_cast<int64_t>(num_bytes / 64);
  HugeBuffer buffer(num_bytes, "the bandwidth probe");
  ThreadPool pool(std::max(1, num_threads));
  double best = 0.0;
  uint64_t total = 0;
  std::memset(buffer.data(), 1, num_bytes);
  for (int i = 0; i < repeats; ++i) {
    std::atomic<uint64_t> sum{0};
    const auto start = Clock::now();
    pool.run([&](int) {
      pool.parallel(lines, std::max<int64_t>(1, lines / (num_threads * 8)), [&](int64_t first, int64_t last) {
        typedef uint64_t U8x __attribute__((vector_size(64)));
        U8x acc[4] = {};
        for (int64_t l = first; l + 4 <= last; l += 4) {
          for (int k = 0; k < 4; ++k)
            __builtin_prefetch(buffer.data() + (l + k) * 64 + 4096);  // as the kernels do
          for (int k = 0; k < 4; ++k) {
            U8x v;
            std::memcpy(&v, buffer.data() + (l + k) * 64, 64);
            acc[k] += v;
          }
        }
        uint64_t folded = 0;
        for (int k = 0; k < 8; ++k) folded += acc[0][k] + acc[1][k] + acc[2][k] + acc[3][k];
        sum += folded;
      });
    });
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, static_cast<double>(num_bytes) / seconds / 1e9);
    total += sum;
  }
  if (total == 0) throw Error("the bandwidth probe read nothing");
  return best;
}

}  // namespace outpace
