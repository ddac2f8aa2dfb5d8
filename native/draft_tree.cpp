#include "draft_tree.h"

#include <algorithm>
#include <string>

namespace outpace {

// Room for as many rows as there are scratch blocks: one that deep a path, and all that each block may hold.
DraftTrees::DraftTrees(const KVCache& cache) : cache_(cache) {
  const auto rows = static_cast<size_t>(cache.num_scratch);
  requests_.reserve(rows);
  path_tokens_.reserve(rows * rows);
  tables_.reserve(rows * static_cast<size_t>(cache.num_blocks));
  row_copies_.reserve(rows * (kBlockSize + 1));
  copies_.reserve(rows * (kBlockSize + 1));
}

void DraftTrees::place(const StepBatch& b, std::vector<Row>& rows) {
  branching_ = false;
  if (b.draft_parents == nullptr) return;
  requests_.clear();
  int64_t num_tree_rows = 0;
  for (int64_t i = 0; i < b.num_requests; ++i) {
    if (!branches(b, i)) continue;
    requests_.push_back(i);
    num_tree_rows += b.num_draft_tokens[i];
  }
  if (num_tree_rows > cache_.num_scratch) {
    throw Error("bad step batch: " + std::to_string(num_tree_rows) +
                " rows of drafts that branch, and the limit is " + std::to_string(cache_.num_scratch));
  }
  branching_ = !requests_.empty();
  if (!branching_) return;
  nodes_.assign(rows.size(), {});
  for (int64_t r = 0; r < b.num_rows; ++r) node(r).parent = r - 1;  // as in a chain
  path_tokens_.clear();
  num_used_ = 0;
  row_copies_.clear();
  const auto need = static_cast<size_t>(num_tree_rows * b.block_table_width);
  if (tables_.size() < need) tables_.resize(need);
  for (const int64_t i : requests_) {
    link(b, i);
    place_tree(b, i, rows);
  }
  hand_out_copies(rows);
}

// Checks a request's parents; whether they are other than those of a chain.
bool DraftTrees::branches(const StepBatch& b, int64_t request) {
  const int64_t count = b.num_draft_tokens[request], first = b.row_start[request + 1] - count;
  bool found = false;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t parent = b.draft_parents[first + k];
    if (parent < -1 || parent >= k) throw Error("bad step batch: a draft's parent does not precede it");
    found |= parent != k - 1;
  }
  return found;
}

// Fills in the nodes of a tree's drafts.
void DraftTrees::link(const StepBatch& b, int64_t request) {
  const int64_t count = b.num_draft_tokens[request], first = b.row_start[request + 1] - count;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t parent = b.draft_parents[first + k];
    Node &own = node(first + k), &above = node(first + parent);
    own.parent = first + parent;
    own.depth = above.depth + 1;
    own.in_line = own.depth == k + 1;
    above.inner = true;
    own.first_token = static_cast<int64_t>(path_tokens_.size());
    if (own.in_line) continue;
    for (int64_t d = 1; d < own.depth; ++d) {
      const int32_t* tokens = above.in_line ? b.token_ids + first : path_tokens_.data() + above.first_token;
      path_tokens_.push_back(tokens[d - 1]);
    }
    path_tokens_.push_back(b.token_ids[first + k]);
  }
}

void DraftTrees::place_tree(const StepBatch& b, int64_t request, std::vector<Row>& rows) {
  const int64_t end = b.row_start[request + 1], first = end - b.num_draft_tokens[request];
  const int64_t root = rows[static_cast<size_t>(first - 1)].position;
  for (int64_t r = first; r < end; ++r) {
    rows[static_cast<size_t>(r)].position = root + node(r).depth;
    rows[static_cast<size_t>(r)].block_table = nullptr;
  }
  const int32_t* own = b.block_tables + request * b.block_table_width;
  for (int64_t r = first; r < end; ++r) {
    Row& row = rows[static_cast<size_t>(r)];
    if (node(r).in_line) {
      row.block_table = own;
    } else if (!node(r).inner || row.position % kBlockSize == kBlockSize - 1) {
      open_scratch(b, request, r, rows);
    }
  }
}

// The request's block table as row `row`, the last of its path in a scratch block, sees it.
const int32_t* DraftTrees::new_table(const StepBatch& b, int64_t request, int64_t row,
                                     const std::vector<Row>& rows) {
  const int64_t block = rows[static_cast<size_t>(row)].position / kBlockSize;
  const int32_t* before = b.block_tables + request * b.block_table_width;
  int64_t r = node(row).parent;
  while (node(r).depth > 0 && rows[static_cast<size_t>(r)].position / kBlockSize == block) r = node(r).parent;
  if (node(r).depth > 0) before = rows[static_cast<size_t>(r)].block_table;  // the path's, one block earlier
  int32_t* table = tables_.data() + num_used_ * b.block_table_width;
  std::copy(before, before + b.block_table_width, table);
  table[block] = static_cast<int32_t>(cache_.num_blocks + num_used_++);
  return table;
}

// Makes the scratch block that ends with `row`, and has all that it holds written into it.
void DraftTrees::open_scratch(const StepBatch& b, int64_t request, int64_t row, std::vector<Row>& rows) {
  const int64_t block = rows[static_cast<size_t>(row)].position / kBlockSize;
  const int32_t *table = new_table(b, request, row, rows),
                *own = b.block_tables + request * b.block_table_width;
  for (int64_t r = row; r >= b.row_start[request]; r = node(r).parent) {
    Row& at = rows[static_cast<size_t>(r)];
    if (at.position / kBlockSize != block) return;
    if (at.block_table == nullptr) {  // it writes here itself
      at.block_table = table;
      continue;
    }
    const int64_t slot = at.position % kBlockSize;
    row_copies_.push_back({r, {at.block_table[block], table[block], slot, slot + 1}});
  }
  const int64_t num_cached = b.num_computed_tokens[request] - block * kBlockSize;
  if (num_cached > 0) row_copies_.push_back({row, {own[block], table[block], 0, num_cached}});
}

void DraftTrees::hand_out_copies(std::vector<Row>& rows) {
  std::sort(row_copies_.begin(), row_copies_.end(),
            [](const RowCopy& a, const RowCopy& b) { return a.row < b.row; });
  copies_.clear();
  for (const RowCopy& c : row_copies_) copies_.push_back(c.copy);
  for (size_t i = 0; i < row_copies_.size(); ++i) {
    Span<KVCopy>& own = rows[static_cast<size_t>(row_copies_[i].row)].copies;
    if (own.size++ == 0) own.data = copies_.data() + i;
  }
}

Span<int32_t> DraftTrees::path(const StepBatch& b, int64_t root, int64_t row) const {
  if (!branching_ || node(row).in_line) return {b.token_ids + root + 1, row - root};
  return {path_tokens_.data() + node(row).first_token, node(row).depth};
}

int64_t DraftTrees::child(const StepBatch& b, int64_t request, int64_t row, int32_t token_id) const {
  for (int64_t r = row + 1; r < b.row_start[request + 1]; ++r) {
    const bool follows = branching_ ? node(r).parent == row : r == row + 1;
    if (follows && b.token_ids[r] == token_id) return r;
    if (!branching_) break;
  }
  return -1;
}

void DraftTrees::accept(const StepBatch& b, int64_t root, int64_t row, const std::vector<Row>& rows) const {
  if (!branching_ || node(row).in_line) return;
  const Row& end = rows[static_cast<size_t>(row)];
  const int32_t* own = b.block_tables + end.request * b.block_table_width;
  const int64_t first = rows[static_cast<size_t>(root)].position + 1, last = end.position + 1;
  for (int64_t block = first / kBlockSize; block * kBlockSize < last; ++block) {
    if (end.block_table[block] == own[block]) continue;
    const int64_t start = block * kBlockSize;
    const KVCopy copy{end.block_table[block], own[block], std::max<int64_t>(0, first - start),
                      std::min<int64_t>(kBlockSize, last - start)};
    for (int64_t layer = 0; layer < cache_.num_layers; ++layer) {
      for (int64_t h = 0; h < cache_.num_kv_heads; ++h) cache_.copy(layer, h, copy);
    }
  }
}

}  // namespace outpace
