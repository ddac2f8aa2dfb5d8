// One tier: the shared sources on top of a simd_*.h, and the table of what they offer.
//
// A tier's translation unit includes no C++ standard headers with inline code: a copy of theirs that is
// compiled for a newer machine could be the one the linker keeps.
#include "f16.h"
#include "kernels.h"

namespace outpace::OUTPACE_TIER {
constexpr int kPrefetch = 8192;  // bytes ahead
}

#include "matmul.inl"
#include "pack.inl"
#include "peak.inl"
#include "rows.inl"

#include "attention.inl"

namespace outpace::OUTPACE_TIER {

constexpr Kernels kTable = {
    .name = kTierName,
    .matmul_strips = matmul_strips,
    .matmul_strip_bf16 = nullptr,
    .round_to_bf16 = nullptr,
    .dot_peak = dot_peak,
    .dequantize_row = dequantize_row,
    .pack_strip = pack_strip,
    .quantize_weights = quantize_weights,
    .quantize_32 = quantize_32,
    .quantize_256 = quantize_256,
    .rms_norm = rms_norm,
    .add = add_rows,
    .scale = scale_row,
    .softcap = softcap_row,
    .silu_mul = silu_mul,
    .gelu_mul = gelu_mul,
    .rope = rope,
    .write_kv = write_kv,
    .quantize_query = quantize_query,
    .attend = attend,
    .attend_rows = attend_rows,
    .merge_attention = merge_attention,
    .argmax = argmax,
    .log_sum_exp = log_sum_exp,
    .exp = exp_row,
};

}  // namespace outpace::OUTPACE_TIER
