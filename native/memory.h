// Large anonymous memory in huge pages, where the system grants them.
//
// Weights are read once per step from end to end: with 4 kB pages the walks of the page table cost
// half of the bandwidth. A mapped file gets no huge pages, so files are read into memory like this.
#pragma once

#include <cstdint>

namespace outpace {

class HugeBuffer {
 public:
  HugeBuffer() = default;
  // Zeroed, aligned to 2 MB, touched lazily. Throws MemoryError that names `purpose`.
  HugeBuffer(uint64_t num_bytes, const char* purpose);
  ~HugeBuffer();
  HugeBuffer(HugeBuffer&& other) noexcept;
  HugeBuffer& operator=(HugeBuffer&& other) noexcept;
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;

  uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }

 private:
  void* mapping_ = nullptr;
  uint64_t mapped_ = 0, size_ = 0;
  uint8_t* data_ = nullptr;
};

}  // namespace outpace
