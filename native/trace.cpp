#include "trace.h"

#include <algorithm>

#include "forward.h"

namespace outpace {

void StepClock::start() {
  trace_ = {};
  started_ = last_ = Clock::now();
}

void StepClock::mark(Op op) {
  const auto now = Clock::now();
  trace_.at(op).seconds += std::chrono::duration<double>(now - last_).count();
  trace_.seconds = std::chrono::duration<double>(now - started_).count();
  last_ = now;
}

namespace {

// A matrix's share of an operation over `num_rows` rows.
void add_matrix(OpTrace& op, const TileMatrix& m, int64_t num_rows) {
  op.num_bytes += static_cast<uint64_t>(m.total_bytes());
  op.num_macs += static_cast<uint64_t>(m.rows * m.columns * num_rows);
}

// The first token that a row sees; the last is the one at its position.
int64_t first_seen(const ModelSpec& spec, const Row& row) {
  return spec.sliding_window > 0 ? std::max<int64_t>(0, row.position + 1 - spec.sliding_window) : 0;
}

void count_attention(const ModelSpec& spec, const KVLayout& kv, const std::vector<Row>& rows,
                     StepTrace& trace) {
  const int64_t token_bytes = spec.num_layers * spec.num_kv_heads * kv.bytes / kBlockSize;
  int64_t tokens_read = 0, tokens_seen = 0;
  for (size_t r = 0; r < rows.size(); ++r) {
    const int64_t begin = first_seen(spec, rows[r]), end = rows[r].position + 1;
    tokens_seen += end - begin;
    // The rows of a request are neighbours: each adds what the one before it did not see.
    const bool follows = r > 0 && rows[r - 1].request == rows[r].request;
    tokens_read += end - (follows ? std::max(begin, rows[r - 1].position + 1) : begin);
  }
  OpTrace& attention = trace.at(Op::attention);
  attention.num_bytes = static_cast<uint64_t>(tokens_read * token_bytes);
  // A token's key with the query, and its value with the score, for each query head.
  attention.num_macs =
      static_cast<uint64_t>(tokens_seen * spec.num_layers * spec.num_heads * spec.head_dim * 2);
}

}  // namespace

void count_work(const ModelSpec& spec, const Weights& weights, const TileMatrix& output, const KVLayout& kv,
                const std::vector<Row>& rows, int64_t num_sampled, StepTrace& trace) {
  const auto num_rows = static_cast<int64_t>(rows.size());
  trace.at(Op::embed).num_bytes = static_cast<uint64_t>(num_rows * weights.embed.strip_bytes / kStrip);
  each_matrix(weights, output, [&](Op op, const TileMatrix& m) {
    const int64_t of_op = op == Op::output ? num_sampled : num_rows;
    if (of_op > 0) add_matrix(trace.at(op), m, of_op);
  });
  count_attention(spec, kv, rows, trace);
}

const char* op_name(Op op) {
  switch (op) {
    case Op::embed:
      return "embed";
    case Op::attn_norm:
      return "attn_norm";
    case Op::qkv:
      return "qkv";
    case Op::rope:
      return "rope";
    case Op::attention:
      return "attention";
    case Op::o:
      return "o";
    case Op::ffn_norm:
      return "ffn_norm";
    case Op::gate_up:
      return "gate_up";
    case Op::quantize:
      return "quantize";
    case Op::down:
      return "down";
    case Op::output_norm:
      return "output_norm";
    case Op::output:
      return "output";
    case Op::sample:
      return "sample";
    case Op::other:
      return "other";
  }
  return "?";
}

}  // namespace outpace
