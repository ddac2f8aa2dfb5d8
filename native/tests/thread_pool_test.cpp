// The thread pool: every index once, whatever the sizes and the threads; idle is free; ends cleanly.
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "check.h"
#include "thread_pool.h"

namespace {

using outpace::ThreadPool;

// More threads than this share cores on a small machine, where each meeting of theirs takes milliseconds:
// they get fewer rounds.
constexpr int kFewThreads = 2;

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void sleep_ms(int n) { std::this_thread::sleep_for(std::chrono::milliseconds(n)); }

TEST(run_calls_every_thread_once) {
  for (int threads = 1; threads <= 8; ++threads) {
    ThreadPool pool(threads);
    CHECK(pool.num_threads() == threads);
    for (int repeat = 0; repeat < (threads > kFewThreads ? 3 : 50); ++repeat) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(threads));
      std::atomic<int> wrong_index{0};
      const std::thread::id caller = std::this_thread::get_id();
      pool.run([&](int index) {
        ++calls[static_cast<size_t>(index)];
        wrong_index += pool.thread_index() != index || (index == 0) != (std::this_thread::get_id() == caller);
      });
      for (const auto& n : calls) CHECK(n == 1);
      CHECK(wrong_index == 0);
    }
  }
}

TEST(parallel_covers_every_index_once) {
  int skipped = 0;
  for (int threads = 1; threads <= 8; ++threads) {
    ThreadPool pool(threads);
    for (const int64_t size : {0, 1, 2, 7, 16, 100, 1001}) {
      for (const int64_t grain : {1, 2, 3, 64, 5000}) {
        if (threads > kFewThreads && ++skipped % 11 != 0) continue;
        std::vector<std::atomic<int>> visits(static_cast<size_t>(size));
        std::atomic<int> bad_ranges{0};
        pool.run([&](int) {
          pool.parallel(size, grain, [&](int64_t first, int64_t last) {
            bad_ranges += first < 0 || last > size || first >= last || (threads > 1 && last - first > grain);
            for (int64_t i = first; i < last; ++i) ++visits[static_cast<size_t>(i)];
          });
        });
        CHECK(bad_ranges == 0);
        CHECK(std::all_of(visits.begin(), visits.end(), [](const auto& n) { return n == 1; }),
              "%d threads, %d by %d", threads, static_cast<int>(size), static_cast<int>(grain));
      }
    }
  }
}

// Each region reads what all threads wrote in the one before: a barrier that lets one thread through too
// early, or a range handed out twice, shows as a wrong number. Returns the wrong ones.
int chained_regions(ThreadPool& pool, int regions) {
  constexpr int64_t size = 37;
  std::vector<int64_t> a(size, 0), b(size, 0);
  std::atomic<int> wrong{0};
  pool.run([&](int) {
    for (int region = 0; region < regions; ++region) {
      std::vector<int64_t>&from = region % 2 == 0 ? a : b, &to = region % 2 == 0 ? b : a;
      pool.parallel(size, 1 + region % 5, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          wrong += from[static_cast<size_t>((i * 11 + 5) % size)] != region;
          to[static_cast<size_t>(i)] = region + 1;
        }
      });
      if (region % 7 == 0) pool.barrier();
    }
  });
  return wrong;
}

TEST(regions_follow_each_other) {
  for (const int threads : {1, 2, 3, 5, 8}) {
    ThreadPool pool(threads);
    CHECK(chained_regions(pool, threads > kFewThreads ? 40 : 1000) == 0, "%d threads", threads);
  }
}

TEST(short_runs_follow_each_other) {
  for (const int threads : {2, 3, 8}) {
    ThreadPool pool(threads);
    int64_t total = 0;
    std::atomic<int64_t> sum{0};
    for (int64_t i = 0; i < (threads > kFewThreads ? 30 : 300); ++i) {
      pool.run([&](int index) { sum += i * (index + 1); });
      total += i * threads * (threads + 1) / 2;
      CHECK(sum == total);
      if (i % 10 == 9) sleep_ms(3);  // so that the threads park in between
    }
  }
}

TEST(two_pools_at_once) {
  std::atomic<int> wrong{0};
  const auto work = [&](int threads) {
    ThreadPool pool(threads);
    for (int i = 0; i < 5; ++i) wrong += chained_regions(pool, 20);
  };
  std::thread other(work, 3);
  work(2);
  other.join();
  CHECK(wrong == 0);
}

TEST(idle_threads_cost_nothing) {
  ThreadPool pool(4);
  CHECK(chained_regions(pool, 20) == 0);
  sleep_ms(50);
  const double before = cpu_seconds();
  sleep_ms(300);
  const double used = cpu_seconds() - before;
  CHECK(used < 0.01, "%.1f ms of CPU time while idle", used * 1e3);
  CHECK(chained_regions(pool, 20) == 0);  // and they wake up again
}

TEST(pools_end_whether_parked_or_spinning) {
  for (const int threads : {1, 2, 8}) {
    for (int i = 0; i < 6; ++i) {
      ThreadPool pool(threads);
      if (i % 3 > 0) CHECK(chained_regions(pool, 3) == 0);
      if (i % 2 == 0) sleep_ms(10);
    }
  }
  CHECK(true);  // reached: nothing hangs
}

}  // namespace
