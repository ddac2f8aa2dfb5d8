// Large anonymous memory in huge pages, where the system grants them.
//
// Weights are read once per step from end to end: with 4 kB pages the walks of the page table cost
// half of the bandwidth. A mapped file gets huge pages on some kernels and file systems only (Linux 6.16 and
// later on ext4, for instance), so a mapping is checked for them, and files are read into memory without.
#pragma once

#include <cstdint>

namespace outpace {

constexpr uint64_t kHugePage = 2u << 20;

class HugeBuffer {
 public:
  HugeBuffer() = default;
  // Zeroed, aligned to 2 MB, touched lazily. Throws MemoryError that names `purpose`.
  HugeBuffer(uint64_t num_bytes, const char* purpose);
  // A file's own pages, read-only, the same alignment. Empty where that cannot be had.
  static HugeBuffer map(int descriptor, uint64_t offset, uint64_t num_bytes);
  ~HugeBuffer();
  HugeBuffer(HugeBuffer&& other) noexcept;
  HugeBuffer& operator=(HugeBuffer&& other) noexcept;
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;

  uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }

 private:
  void place(uint64_t num_bytes);  // reserves addresses

  void* mapping_ = nullptr;
  uint64_t mapped_ = 0, size_ = 0;
  uint8_t* data_ = nullptr;
};

// Bytes of a mapped file that lie in huge pages now.
uint64_t huge_file_bytes(const HugeBuffer& mapped);

}  // namespace outpace
