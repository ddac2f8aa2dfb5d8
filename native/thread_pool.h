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

// One thread's share of some units of work. It takes them from the front, one after the other as they lie in
// memory; who has none left takes from the back of another's share.
class Share {
 public:
  void reset() { taken_.store(0, std::memory_order_relaxed); }
  // Which of the share's `size` units is taken; negative: none is left.
  int64_t take_first(int64_t size) {
    const uint64_t before = taken_.fetch_add(1, std::memory_order_relaxed);
    return first(before) + last(before) < size ? first(before) : -1;
  }
  int64_t take_last(int64_t size) {
    // Looking disturbs the owner less than taking.
    const uint64_t now = taken_.load(std::memory_order_relaxed);
    if (first(now) + last(now) >= size) return -1;
    const uint64_t before = taken_.fetch_add(uint64_t{1} << 32, std::memory_order_relaxed);
    return first(before) + last(before) < size ? size - 1 - last(before) : -1;
  }

 private:
  static int64_t first(uint64_t taken) { return static_cast<int64_t>(taken & 0xffffffff); }
  static int64_t last(uint64_t taken) { return static_cast<int64_t>(taken >> 32); }

  alignas(64) std::atomic<uint64_t> taken_{0};  // from the front; from the back in the upper half
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

  // Inside run(): calls body(first, last) over [0, size) in ranges of `grain` (at least 1), the last one
  // maybe shorter, or in one where there is one thread, and ends with a barrier. Every thread begins with a
  // share of its own, the same one in every call: what lies there comes as one stream, and is still in its
  // caches the next time. All threads must make the same calls in the same order.
  template <class Body>
  void parallel(int64_t size, int64_t grain, const Body& body);
  // Inside run(): the calling thread's share of such a call, [first, last); maybe nothing.
  struct Part {
    int64_t first, last;
  };
  Part share(int64_t size, int64_t grain) const {
    const Part units = share_of(num_units(size, grain), thread_index_);
    const int64_t end = units.last * grain;
    return {units.first * grain, end < size ? end : size};
  }

 private:
  static int64_t num_units(int64_t size, int64_t grain) { return size > 0 ? (size + grain - 1) / grain : 0; }
  Part share_of(int64_t units, int thread) const {
    return {units * thread / num_threads_, units * (thread + 1) / num_threads_};
  }

  using Call = void (*)(const void* task,
                        int index) noexcept;  // no std::function: it allocates for most lambdas
  void run(const void* task, Call call);
  void work(int index);
  void stop();
  void fail();  // keeps the current exception for run(), if it is the first

  static constexpr int kNumTurns = 4;  // enough that the shares being reset are not in use
  const int num_threads_;
  const bool pins_;
  const uint32_t forks_;  // of the process when the threads were made
  std::mutex running_;    // one run at a time
  Barrier barrier_;
  std::vector<Share> shares_;  // [kNumTurns, num_threads]
  std::vector<int> turn_;      // [num_threads x 16] which row of shares_ a thread uses next
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
  Share* shares = shares_.data() + turn * num_threads_;
  // Two uses ahead: every thread has left that one, or it could not have passed the last barrier.
  shares_[static_cast<size_t>((turn + 2) % kNumTurns * num_threads_ + thread_index_)].reset();
  turn = (turn + 1) % kNumTurns;
  if (num_threads_ == 1) grain = size;
  const int64_t units = num_units(size, grain);
  try {
    for (int i = 0; i < num_threads_; ++i) {
      const int owner = (thread_index_ + i) % num_threads_;
      const Part part = share_of(units, owner);
      const int64_t count = part.last - part.first;
      while (count > 0) {
        const int64_t unit = i == 0 ? shares[owner].take_first(count) : shares[owner].take_last(count);
        if (unit < 0) break;
        const int64_t first = (part.first + unit) * grain;
        body(first, first + grain < size ? first + grain : size);
      }
    }
  } catch (...) {
    fail();  // and on to the barrier, where the others wait
  }
  barrier();
}

}  // namespace outpace
