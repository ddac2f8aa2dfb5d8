#define OUTPACE_TIER avx512vnni
#include "simd_avx512.h"

namespace outpace::OUTPACE_TIER {
constexpr const char* kTierName = "avx512vnni";
constexpr int kRegisterSums = 16, kStripsTogether = 2, kUnpackFrom = 32;
}  // namespace outpace::OUTPACE_TIER

#include "tier.inl"

const outpace::Kernels& outpace::avx512vnni_kernels() { return outpace::OUTPACE_TIER::kTable; }
