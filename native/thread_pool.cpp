#include "thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>
#include <utility>

#include "api.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace outpace {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// A waiting thread first spins, longer than most waits on a quiet machine, as each system call costs; then it
// offers its core to whoever shares it, now and then, and at last sleeps. Without the middle part, two
// threads that the system has put on one core each spin through the other's time: 36 ms instead of 2.5 for a
// step of the 135M model.
struct Patience {
  microseconds spin;
  int yields;
  bool in_step;
};
constexpr Patience kInStep{microseconds(200), 50, true};
constexpr Patience kIdle{microseconds(500), 20, false};  // more than Python takes between two steps
constexpr int kSpinsPerLook = 32;  // at the clock, or between two yields: about a microsecond

// A yield that takes this long let somebody else run, and a wait in a step that ends in sleep was for a
// thread that has no core: the cores are shared, and for so many waits to come (about a step) this thread
// yields at once, and then sleeps, which lets the system move the other one here.
constexpr microseconds kSlowYield(20);
constexpr int kCrowdedWaits = 256;
thread_local int crowded_waits = 0;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // "yield" does nothing on most cores
#endif
}

// Waits until `value` differs from `old`.
void wait_for_change(std::atomic<uint32_t>& value, uint32_t old, Patience patience) {
  const auto changed_in_a_spin = [&] {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      if (value.load(std::memory_order_acquire) != old) return true;
      pause();
    }
    return false;
  };
  if (changed_in_a_spin()) return;
  const bool crowded = crowded_waits > 0;
  if (crowded) --crowded_waits;
  for (const auto end = Clock::now() + patience.spin; !crowded && Clock::now() < end;) {
    if (changed_in_a_spin()) return;
  }
  for (int i = 0; i < patience.yields; ++i) {
    const auto start = Clock::now();
    std::this_thread::yield();
    if (Clock::now() - start > kSlowYield) crowded_waits = kCrowdedWaits;
    if (crowded ? value.load(std::memory_order_acquire) != old : changed_in_a_spin()) return;
  }
  if (patience.in_step && !crowded) crowded_waits = kCrowdedWaits;
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

// Counts on, which ends the waits for a change, without a system call where nobody sleeps. Sequentially
// consistent: notify_all() looks whether somebody sleeps, and a change that is only a release may reach the
// others after that look. One who falls asleep in between would neither see it nor be woken, and wait for
// ever.
void advance(std::atomic<uint32_t>& value) {
  value.fetch_add(1, std::memory_order_seq_cst);
  value.notify_all();
}

std::atomic<uint32_t> num_forks{0};

uint32_t count_forks() {
  [[maybe_unused]] static const int registered =
      pthread_atfork(nullptr, nullptr, [] { num_forks.fetch_add(1, std::memory_order_relaxed); });
  return num_forks.load(std::memory_order_relaxed);
}

// Two pools on the same cores would each wait for the other: only one of a process pins its threads.
std::atomic<bool> pool_pins{false};

void pin([[maybe_unused]] const std::vector<int>& cpus) {
#if defined(__linux__)
  const auto count = static_cast<size_t>(*std::max_element(cpus.begin(), cpus.end())) + 1;
  cpu_set_t* set = CPU_ALLOC(count);
  if (set == nullptr) return;
  CPU_ZERO_S(CPU_ALLOC_SIZE(count), set);
  for (const int cpu : cpus) CPU_SET_S(static_cast<size_t>(cpu), CPU_ALLOC_SIZE(count), set);
  // Refused where the system's mask has changed meanwhile: the thread floats, which is only slower.
  pthread_setaffinity_np(pthread_self(), CPU_ALLOC_SIZE(count), set);
  CPU_FREE(set);
#endif
}

}  // namespace

thread_local int ThreadPool::thread_index_ = 0;

void Barrier::wait() {
  if (num_threads_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    advance(phase_);
  } else {
    wait_for_change(phase_, phase, kInStep);
  }
}

ThreadPool::ThreadPool(int num_threads, const std::vector<std::vector<int>>& cores)
    : num_threads_(num_threads),
      pins_(!cores.empty() && !pool_pins.exchange(true)),
      forks_(count_forks()),
      barrier_(num_threads),
      shares_(static_cast<size_t>(kNumTurns) * static_cast<size_t>(num_threads)),
      turn_(static_cast<size_t>(num_threads) * 16) {
  try {
    for (int i = 1; i < num_threads; ++i) {
      const auto at = static_cast<size_t>(i);
      const std::vector<int> cpus = pins_ && at < cores.size() ? cores[at] : std::vector<int>{};
      threads_.emplace_back([this, i, cpus] {
        if (!cpus.empty()) pin(cpus);
        work(i);
      });
    }
  } catch (const std::system_error&) {
    const std::string made = std::to_string(threads_.size() + 1);
    stop();
    throw Error("the system gives this process no more than " + made + " threads, not " +
                std::to_string(num_threads) + "; ask for fewer");
  }
}

ThreadPool::~ThreadPool() {
  if (forks_ == num_forks.load(std::memory_order_relaxed)) {
    stop();
  } else {
    new std::vector<std::thread>(std::move(threads_));  // a forked child has no threads to join: left alone
  }
}

void ThreadPool::stop() {
  stopping_.store(true);
  advance(generation_);
  for (std::thread& thread : threads_) thread.join();
  if (pins_) pool_pins.store(false);
}

void ThreadPool::run(const void* task, Call call) {
  if (!threads_.empty() && forks_ != num_forks.load(std::memory_order_relaxed))
    throw Error("this process was forked after the model was loaded; load it in the child");
  const std::lock_guard<std::mutex> turn_to_run(running_);
  thread_index_ = 0;
  for (int& turn : turn_) turn = 0;
  for (Share& share : shares_) share.reset();
  task_ = task;
  call_ = call;
  advance(generation_);
  call(task, 0);
  barrier();
  if (failed_.exchange(false)) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void ThreadPool::work(int index) {
  thread_index_ = index;
  uint32_t seen = 0;
  while (true) {
    wait_for_change(generation_, seen, kIdle);
    ++seen;
    if (stopping_.load()) return;
    call_(task_, index);
    barrier();
  }
}

void ThreadPool::fail() {
  if (!failed_.exchange(true)) failure_ = std::current_exception();
}

}  // namespace outpace
