#define OUTPACE_TIER avx512vnni
#include "simd_avx512.h"

namespace outpace::OUTPACE_TIER {
constexpr const char* kTierName = "avx512vnni";
constexpr int kRegisterSums = 16, kStripsTogether = 2;
constexpr int64_t unpack_from(Format f) { return bits(f) == 5 || bits(f) == 6 ? 32 : 0; }
}  // namespace outpace::OUTPACE_TIER

#include "tier.inl"

const outpace::Kernels& outpace::avx512vnni_kernels() { return outpace::OUTPACE_TIER::kTable; }
