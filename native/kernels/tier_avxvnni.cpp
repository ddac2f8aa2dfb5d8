#define OUTPACE_TIER avxvnni
#include "simd_avx2.h"

namespace outpace::OUTPACE_TIER {
constexpr const char* kTierName = "avxvnni";
constexpr int kRegisterSums = 4, kStripsTogether = 1, kUnpackFrom = 0;
}  // namespace outpace::OUTPACE_TIER

#include "tier.inl"

const outpace::Kernels& outpace::avxvnni_kernels() { return outpace::OUTPACE_TIER::kTable; }
