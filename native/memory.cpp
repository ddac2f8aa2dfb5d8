#include "memory.h"

#include <sys/mman.h>

#include <string>
#include <utility>

#include "api.h"

namespace outpace {

namespace {
constexpr uint64_t kHugePage = 2u << 20;
}

HugeBuffer::HugeBuffer(uint64_t num_bytes, const char* purpose) : size_(num_bytes) {
  if (num_bytes == 0) return;
  mapped_ = (num_bytes + kHugePage - 1) / kHugePage * kHugePage + kHugePage;
  mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    throw MemoryError("cannot reserve " + std::to_string(num_bytes >> 20) + " MB for " + purpose +
                      "; free some memory, take a smaller model, or lower the KV cache budget");
  }
  const auto address = reinterpret_cast<uintptr_t>(mapping_);
  data_ = reinterpret_cast<uint8_t*>((address + kHugePage - 1) / kHugePage * kHugePage);
  // Advice only: without huge pages all works, at a lower bandwidth.
  madvise(data_, (num_bytes + kHugePage - 1) / kHugePage * kHugePage, MADV_HUGEPAGE);
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

}  // namespace outpace
