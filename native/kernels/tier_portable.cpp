#define OUTPACE_TIER portable
#include "simd_portable.h"

namespace outpace::OUTPACE_TIER {
constexpr const char* kTierName = "portable";
constexpr int kRegisterSums = 4, kStripsTogether = 1, kUnpackFrom = 0;
}  // namespace outpace::OUTPACE_TIER

#include "tier.inl"

const outpace::Kernels& outpace::portable_kernels() { return outpace::OUTPACE_TIER::kTable; }
