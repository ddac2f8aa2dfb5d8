#define OUTPACE_TIER portable
#include "simd_portable.h"

namespace outpace::OUTPACE_TIER {
constexpr const char* kTierName = "portable";
constexpr int kMaxRows = 4;  // rows whose accumulators fit the registers
}  // namespace outpace::OUTPACE_TIER

#include "tier.inl"

const outpace::Kernels& outpace::portable_kernels() { return outpace::OUTPACE_TIER::kTable; }
