#define OUTPACE_TIER avx2
#include "simd_avx2.h"

namespace outpace::OUTPACE_TIER {
constexpr const char* kTierName = "avx2";
constexpr int kRegisterSums = 4, kStripsTogether = 1, kUnpackFrom = 8;
}  // namespace outpace::OUTPACE_TIER

#include "tier.inl"

const outpace::Kernels& outpace::avx2_kernels() { return outpace::OUTPACE_TIER::kTable; }
