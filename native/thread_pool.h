// A persistent pool: every thread runs the same function, side by side, with barriers between its parts.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace outpace {

// Spins briefly and then sleeps, so that waiting is quick in a step and free when idle.
class Barrier {
 public:
  explicit Barrier(int num_threads) : num_threads_(num_threads) {}
  void wait();

 private:
  const int num_threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// Hands out ranges of [0, size) to whichever thread asks; reset between uses by one thread.
class Ranges {
 public:
  void reset() { next_.store(0, std::memory_order_relaxed); }
  // The start of the next range of `grain`; at or past `size` when there is none.
  int64_t take(int64_t grain) { return next_.fetch_add(grain, std::memory_order_relaxed); }

 private:
  alignas(64) std::atomic<int64_t> next_{0};
};

class ThreadPool {
 public:
  // Thread i > 0 is kept to the processors cores[i], where those are given and allowed, unless another pool
  // of this process has done so; the caller of run() is thread 0 and stays as it is. Throws Error when the
  // system refuses a thread.
  explicit ThreadPool(int num_threads, const std::vector<std::vector<int>>& cores = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }
  // Inside run(): which thread this is.
  int thread_index() const { return thread_index_; }

  // Runs task(thread index) on every thread, the caller being thread 0, and waits for all of them. The first
  // exception of a body of parallel() is thrown here when all have ended; one from elsewhere in the task ends
  // the process, as others may wait at a barrier. Calls from several threads wait for each other; a task that
  // calls it would wait for itself. Throws Error in a child process that was forked from the pool's: threads
  // are not inherited.
  template <class Task>
  void run(const Task& task) {
    run(&task, [](const void* t, int index) noexcept { (*static_cast<const Task*>(t))(index); });
  }

  // Inside run(): waits until every thread is here.
  void barrier() { barrier_.wait(); }

  // Inside run(): calls body(first, last) over [0, size) in ranges of about `grain`, spread over the
  // threads, and ends with a barrier. All threads must make the same calls in the same order.
  template <class Body>
  void parallel(int64_t size, int64_t grain, const Body& body);

 private:
  using Call = void (*)(const void* task,
                        int index) noexcept;  // no std::function: it allocates for most lambdas
  void run(const void* task, Call call);
  void work(int index);
  void stop();
  void fail();  // keeps the current exception for run(), if it is the first

  static constexpr int kNumRanges = 4;  // enough that the one being reset is not in use
  const int num_threads_;
  const bool pins_;
  const uint32_t forks_;  // of the process when the threads were made
  std::mutex running_;    // one run at a time
  Barrier barrier_;
  Ranges ranges_[kNumRanges];
  std::vector<int> turn_;  // [num_threads x 16] which of ranges_ a thread uses next
  const void* task_ = nullptr;
  Call call_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<bool> stopping_{false}, failed_{false};
  std::exception_ptr failure_;
  std::vector<std::thread> threads_;

  static thread_local int thread_index_;
};

template <class Body>
void ThreadPool::parallel(int64_t size, int64_t grain, const Body& body) {
  int& turn = turn_[static_cast<size_t>(thread_index_) * 16];
  Ranges& ranges = ranges_[turn];
  // Two uses ahead: every thread has left that one, or it could not have passed the last barrier.
  if (thread_index_ == 0) ranges_[(turn + 2) % kNumRanges].reset();
  turn = (turn + 1) % kNumRanges;
  if (num_threads_ == 1) grain = size;
  try {
    for (int64_t first = ranges.take(grain); first < size; first = ranges.take(grain)) {
      body(first, first + grain < size ? first + grain : size);
    }
  } catch (...) {
    fail();  // and on to the barrier, where the others wait
  }
  barrier();
}

}  // namespace outpace
