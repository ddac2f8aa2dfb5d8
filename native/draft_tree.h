// Drafts that branch, on a KV cache and kernels that know only sequences.
//
// The drafts of a request are the nodes of a tree; its root is the row before them. A row's position is
// the root's plus its depth, and it sees its ancestors alone, at their positions: so each path has to lie
// in the KV cache as if it were the only one. Rows in line (row k of the drafts at depth k + 1, as in a
// chain) lie in the request's own blocks. A path that leaves this line gets scratch blocks from there on:
//
//   drafts        0  1  2  3  4        path 0 1 2   the request's block table
//   parents      -1  0  1  0  3        path 0 3 4   the same, but for a scratch block: the context's last
//   depth         1  2  3  2  3                     tokens in that block, draft 0 (copied), drafts 3 and 4
//
// A scratch block belongs to the last row of a path in it: a leaf, or a row in the block's last slot. So
// there are never more of them than rows, and rows above a fork are copied into all that lie below.
#pragma once

#include <vector>

#include "api.h"
#include "kv_cache.h"

namespace outpace {

class DraftTrees {
 public:
  // Takes the cache's scratch blocks.
  explicit DraftTrees(const KVCache& cache);

  // Corrects the rows, placed as for chains, of drafts that branch. Throws Error where the parents are
  // out of order or the step has more rows in trees than scratch blocks. What the rows point to is valid
  // until the next call.
  void place(const StepBatch& batch, std::vector<Row>& rows);

  // The draft tokens on the way to a row, its own included; `root` is the row before the drafts.
  Span<int32_t> path(const StepBatch& batch, int64_t root, int64_t row) const;

  // The first draft row that follows `row` with this token, or -1.
  int64_t child(const StepBatch& batch, int64_t request, int64_t row, int32_t token_id) const;

  // Brings the entries of an accepted path, which ends in `row`, into the request's own blocks.
  void accept(const StepBatch& batch, int64_t root, int64_t row, const std::vector<Row>& rows) const;

 private:
  struct Node {
    int64_t parent = -1;      // the row before it on its path
    int64_t depth = 0;        // 0: no draft
    int64_t first_token = 0;  // of its path, in path_tokens_
    bool in_line = true, inner = false;
  };
  struct RowCopy {
    int64_t row;
    KVCopy copy;
  };

  Node& node(int64_t row) { return nodes_[static_cast<size_t>(row)]; }
  const Node& node(int64_t row) const { return nodes_[static_cast<size_t>(row)]; }
  static bool branches(const StepBatch& batch, int64_t request);
  void link(const StepBatch& batch, int64_t request);
  void place_tree(const StepBatch& batch, int64_t request, std::vector<Row>& rows);
  void open_scratch(const StepBatch& batch, int64_t request, int64_t row, std::vector<Row>& rows);
  const int32_t* new_table(const StepBatch& batch, int64_t request, int64_t row,
                           const std::vector<Row>& rows);
  void hand_out_copies(std::vector<Row>& rows);

  const KVCache& cache_;
  bool branching_ = false;         // whether the present step has a draft that branches
  std::vector<int64_t> requests_;  // whose drafts branch
  std::vector<Node> nodes_;        // [num_rows]
  std::vector<int32_t> path_tokens_;
  int64_t num_used_ = 0;         // scratch blocks
  std::vector<int32_t> tables_;  // [scratch blocks, block_table_width]
  std::vector<RowCopy> row_copies_;
  std::vector<KVCopy> copies_;  // of all rows, one after the other
};

}  // namespace outpace
