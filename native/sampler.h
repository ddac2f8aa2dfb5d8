// From a row of logits to a token; the semantics are stated in outpace.engine.sampling.
#pragma once

#include <vector>

#include "api.h"
#include "kernels/kernels.h"

namespace outpace {

struct SampleRequest {
  const Sampling* sampling;
  int64_t position;            // of the token to choose: the number of tokens before it
  Span<int32_t> history = {};  // prompt and output so far, where a penalty asks for it
  Span<int32_t> drafts = {};   // draft tokens before this row, as if they were output
  Span<int32_t> bias_token_ids = {};
  Span<float> bias_values = {};
  const uint32_t* token_mask = nullptr;  // [mask_words(vocab_size)] a bit for each token allowed; null: all
  // [vocab_size] whose logits these are, ascending, where they are not all tokens': the noise is theirs. The
  // result, bias, penalties and mask go by index all the same.
  const int32_t* token_ids = nullptr;
};

struct Sampled {
  int32_t token_id = 0;
  float logprob = 0.0f;                        // nats, of the raw logits
  std::vector<std::pair<int32_t, float>> top;  // (token id, logprob), the likeliest first
};

// Chooses the token. Changes `logits` [vocab_size].
Sampled sample(const Kernels& kernels, float* logits, int64_t vocab_size, const SampleRequest& request);

}  // namespace outpace
