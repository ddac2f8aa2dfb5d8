#include "thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace outpace {

namespace {

// A waiting thread first spins (about 10 microseconds, longer than most waits in a step), then offers its
// core to whoever shares it, and at last sleeps. Without the middle part, two threads that the system has put
// on one core each spin through the other's time: 36 ms instead of 2.5 for a step of the 135M model.
constexpr int kSpins = 300;
constexpr int kYields = 50;
constexpr int kIdleYields = 500;  // between steps: about the time that Python takes for a decode step

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` differs from `old`.
void wait_for_change(std::atomic<uint32_t>& value, uint32_t old, int yields) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  for (int i = 0; i < yields; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    std::this_thread::yield();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

thread_local int ThreadPool::thread_index_ = 0;

void Barrier::wait() {
  if (num_threads_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
  } else {
    wait_for_change(phase_, phase, kYields);
  }
}

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads), barrier_(num_threads), turn_(static_cast<size_t>(num_threads) * 16) {
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(const std::function<void(int)>& task) {
  thread_index_ = 0;
  for (int& turn : turn_) turn = 0;
  for (Ranges& ranges : ranges_) ranges.reset();
  task_ = &task;
  running_.store(num_threads_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  task(0);
  for (int i = 0; running_.load(std::memory_order_acquire) != 0; ++i) {
    if (i < kSpins)
      pause();
    else
      std::this_thread::yield();
  }
}

void ThreadPool::work(int index) {
  thread_index_ = index;
  uint32_t seen = 0;
  while (true) {
    wait_for_change(generation_, seen, kIdleYields);
    ++seen;
    if (stopping_.load()) return;
    (*task_)(index);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace outpace
