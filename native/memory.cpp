#include "memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <utility>

#include "api.h"

namespace outpace {

namespace {

uint64_t whole_pages(uint64_t num_bytes) { return (num_bytes + kHugePage - 1) / kHugePage * kHugePage; }

}  // namespace

void HugeBuffer::place(uint64_t num_bytes) {
  mapped_ = whole_pages(num_bytes) + kHugePage;
  mapping_ = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    return;
  }
  size_ = num_bytes;
  data_ = reinterpret_cast<uint8_t*>(whole_pages(reinterpret_cast<uintptr_t>(mapping_)));
}

// It is whole once the default constructor has run: what throws after that gives the addresses back.
HugeBuffer::HugeBuffer(uint64_t num_bytes, const char* purpose) : HugeBuffer() {
  if (num_bytes == 0) return;
  place(num_bytes);
  if (mapping_ == nullptr || mprotect(data_, whole_pages(num_bytes), PROT_READ | PROT_WRITE) != 0) {
    throw MemoryError("cannot reserve " + std::to_string(num_bytes >> 20) + " MB for " + purpose +
                      "; free some memory, take a smaller model, or lower the KV cache budget");
  }
  // Advice only: without huge pages all works, at a lower bandwidth.
  madvise(data_, whole_pages(num_bytes), MADV_HUGEPAGE);
}

HugeBuffer HugeBuffer::map(int descriptor, uint64_t offset, uint64_t num_bytes) {
  HugeBuffer buffer;
  buffer.place(num_bytes);
  if (buffer.mapping_ == nullptr) return {};
  void* at = mmap(buffer.data_, num_bytes, PROT_READ, MAP_SHARED | MAP_FIXED, descriptor,
                  static_cast<off_t>(offset));
  if (at == MAP_FAILED) return {};
  madvise(at, num_bytes, MADV_HUGEPAGE);
  return buffer;
}

HugeBuffer::~HugeBuffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_);
}

HugeBuffer::HugeBuffer(HugeBuffer&& other) noexcept { *this = std::move(other); }

HugeBuffer& HugeBuffer::operator=(HugeBuffer&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_, other.mapped_);
  std::swap(size_, other.size_);
  std::swap(data_, other.data_);
  return *this;
}

uint64_t huge_file_bytes(const HugeBuffer& mapped) {
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool here = false;
  const auto start = reinterpret_cast<uintptr_t>(mapped.data());
  while (std::getline(smaps, line)) {
    // "7f12a0000000-7f12e0000000 r--s ..." starts a mapping, "FilePmdMapped:  1048576 kB" belongs to it.
    unsigned long long from = 0, to = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx ", &from, &to) == 2) here = from == start;
    if (here && line.rfind("FilePmdMapped:", 0) == 0) return std::stoull(line.substr(14)) << 10;
  }
  return 0;
}

}  // namespace outpace
