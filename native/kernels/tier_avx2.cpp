#define OUTPACE_TIER avx2
#include "simd_avx2.h"

namespace outpace::OUTPACE_TIER {
constexpr const char* kTierName = "avx2";
constexpr int kRegisterSums = 4, kStripsTogether = 1;
// Rows from which unpacking once pays, measured; 0: never. Bytes are used as they lie, and 4 bits take 24
// instructions to unpack, fewer than it costs to write and read the lines.
constexpr int64_t unpack_from(Format f) { return bits(f) == 5 || bits(f) == 6 ? 8 : 0; }
}  // namespace outpace::OUTPACE_TIER

#include "tier.inl"

const outpace::Kernels& outpace::avx2_kernels() { return outpace::OUTPACE_TIER::kTable; }
