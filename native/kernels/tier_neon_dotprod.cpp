#define OUTPACE_TIER neon_dotprod
#include "simd_neon.h"

namespace outpace::OUTPACE_TIER {
constexpr const char* kTierName = "neon-dotprod";
constexpr int kRegisterSums = 4, kStripsTogether = 1, kUnpackFrom = 0;
}  // namespace outpace::OUTPACE_TIER

#include "tier.inl"

const outpace::Kernels& outpace::neon_dotprod_kernels() { return outpace::OUTPACE_TIER::kTable; }
