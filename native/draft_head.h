// A light trained drafter on the model's own hidden states (EAGLE, arXiv:2401.15077).
//
// Its entry for the token at position p is made of that token's embedding and the model's final hidden state
// at p - 1 (zeros before the first token), which `fc` brings to the hidden size; then come its layers. The
// normalized result stands for the model's state at p: `output` makes logits of a trimmed vocabulary of it,
// and with the guess that was picked it is the input of the next entry. Entries of guesses are overwritten by
// those of what came true. A token picks by the request's own noise, as the model will.
//
// It computes on the model's threads, and has a KV cache of its own, whose positions count from where it
// began to read a request.
#pragma once

#include <vector>

#include "api.h"
#include "forward.h"
#include "hidden_states.h"

namespace outpace {

class DraftHead {
 public:
  // `model` and `embed` are those of the model that it runs ahead of; `options` are that model's, too.
  DraftHead(const HeadSpec& spec, const std::vector<TensorRef>& tensors, const ModelSpec& model,
            const Options& options, const TileMatrix& embed, const Kernels& kernels, ThreadPool& pool);

  // See Model::guess.
  void guess(const HeadBatch& batch, HeadOutput& output);

  // Of every token that is in the model's KV cache for good.
  HiddenStates states;

  uint64_t weight_bytes() const { return weights_.step_bytes; }

 private:
  // One entry to be made: a token and what came before it.
  struct Entry {
    int64_t request, position;  // in the request
    int32_t token_id;
    bool guessed;  // a guess, after the head's own state
    bool last;     // the request's next token is asked for
  };
  // A request's guesses so far.
  struct Progress {
    float chance = 1.0f;  // that all of them come true, as the head sees it
    int64_t position = 0;
    int32_t token_id = 0;  // the last one
    bool open = false;
  };

  void check(const HeadBatch& b, const HeadOutput& output) const;
  void read(const HeadBatch& b, HeadOutput& output);
  void make_entries(const HeadBatch& b);
  void fill_input(const HeadBatch& b, const Entry& entry, float* input) const;
  void pick(const HeadBatch& b, HeadOutput& output);
  void pick_one(const HeadBatch& b, HeadOutput& output, int64_t row, float* logits);
  float* state(int64_t request) { return own_.data() + request * spec_.hidden_size; }
  const float* state(int64_t request) const { return own_.data() + request * spec_.hidden_size; }

  const ModelSpec& model_;
  const ModelSpec spec_;
  const std::vector<int32_t> token_ids_;  // [draft vocabulary] ascending: what its logits stand for
  const Options options_;
  const TileMatrix& embed_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  const Weights weights_;
  KVCache cache_;
  Forward forward_;
  const int64_t model_blocks_;  // of the model's own cache
  std::vector<Entry> entries_;  // of the present pass
  std::vector<Row> rows_;
  std::vector<int64_t> asked_;      // of them, whose next token is asked for
  LineVector<float> inputs_, own_;  // [entries, 2 x hidden size], [requests, hidden size]
  LineVector<float> logits_;        // [requests, padded draft vocabulary]
  std::vector<Progress> progress_;  // per request
};

}  // namespace outpace
