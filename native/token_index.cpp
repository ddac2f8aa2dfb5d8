#include "token_index.h"

#include <algorithm>

namespace outpace {

namespace {
constexpr int64_t kFirstRing = 1024;
constexpr int kMostSteps = 32;  // places that are looked at in one chain
}  // namespace

TokenIndex::TokenIndex(int64_t capacity, std::vector<int32_t> orders)
    : capacity_(std::max<int64_t>(capacity, 1)), tokens_(kFirstRing, kBorder) {
  std::sort(orders.rbegin(), orders.rend());
  for (const int32_t order : orders) {
    chains_.push_back(
        {std::max(order, 1), std::vector<int64_t>(kFirstRing, 0), std::vector<uint32_t>(kFirstRing, 0)});
  }
}

template <class At>
bool TokenIndex::hash(int32_t order, At at, uint64_t& value) const {
  uint64_t h = 0;
  for (int32_t i = 0; i < order; ++i) {
    const int32_t token_id = at(i);
    if (token_id < 0) return false;
    h = (h ^ static_cast<uint64_t>(token_id)) * 0x9E3779B97F4A7C15u;
    h ^= h >> 29;
  }
  value = h;
  return true;
}

void TokenIndex::append(const int32_t* token_ids, int64_t count) {
  const auto held = hold();
  for (int64_t i = 0; i < count; ++i) put(token_ids[i]);
}

void TokenIndex::put(int32_t token_id) {
  if (num_kept() == ring_size() && ring_size() < capacity_) rebuild(tokens_.size() * 2);
  const int64_t position = size_++;
  tokens_[slot(position)] = token_id < 0 ? kBorder : token_id;
  for (Chain& chain : chains_) {
    uint32_t& link = chain.links[slot(position)];
    link = 0;
    uint64_t h = 0;
    if (position - chain.order + 1 < begin()) continue;
    if (!hash(chain.order, [&](int32_t i) { return at(position - i); }, h)) continue;
    int64_t& head = chain.heads[static_cast<size_t>(h) & (chain.heads.size() - 1)];
    if (head > begin()) link = static_cast<uint32_t>(position + 1 - head);
    head = position + 1;
  }
}

void TokenIndex::set_capacity(int64_t capacity) {
  const auto held = hold();
  capacity_ = std::max<int64_t>(capacity, 1);
  int64_t size = ring_size();
  while (size > kFirstRing && size / 2 >= capacity_) size /= 2;
  if (size != ring_size()) rebuild(static_cast<size_t>(size));
}

// Another ring, and what it has room for once more; by doubling, a token is put in twice on average.
void TokenIndex::rebuild(size_t ring_size) {
  const int64_t end = size_;
  std::vector<int32_t> kept;
  for (int64_t i = std::max(begin(), end - static_cast<int64_t>(ring_size)); i < end; ++i) {
    kept.push_back(at(i));
  }
  tokens_ = std::vector<int32_t>(ring_size, kBorder);
  for (Chain& chain : chains_) {
    chain.heads = std::vector<int64_t>(ring_size, 0);
    chain.links = std::vector<uint32_t>(ring_size, 0);
  }
  first_ = size_ = end - static_cast<int64_t>(kept.size());
  for (const int32_t token_id : kept) put(token_id);
}

int64_t TokenIndex::num_bytes() const {
  size_t bytes = tokens_.capacity() * sizeof(int32_t);
  for (const Chain& chain : chains_) {
    bytes += chain.heads.capacity() * sizeof(int64_t) + chain.links.capacity() * sizeof(uint32_t);
  }
  return static_cast<int64_t>(bytes);
}

int64_t TokenIndex::match_length(const int32_t* context, int64_t length, int64_t position) const {
  const int64_t most = std::min({length, kLongest, position - begin() + 1});
  int64_t equal = 0;
  while (equal < most && context[length - 1 - equal] == at(position - equal)) ++equal;
  return equal;
}

void TokenIndex::find(const int32_t* context, int64_t length, int64_t before, size_t most,
                      std::vector<TokenMatch>& found) const {
  found.clear();
  for (const Chain& chain : chains_) {
    if (length < chain.order || found.size() >= most) continue;
    uint64_t h = 0;
    if (!hash(chain.order, [&](int32_t i) { return context[length - 1 - i]; }, h)) continue;
    int64_t position = chain.heads[static_cast<size_t>(h) & (chain.heads.size() - 1)] - 1;
    for (int step = 0; step < kMostSteps && position >= begin(); ++step) {
      const bool known = std::any_of(found.begin(), found.end(),
                                     [&](const TokenMatch& m) { return m.position == position; });
      if (position < before && !known) {
        const int64_t equal = match_length(context, length, position);
        if (equal >= chain.order) found.push_back({position, equal});
      }
      const uint32_t link = chain.links[slot(position)];
      if (link == 0) break;
      position -= link;
    }
  }
  std::sort(found.begin(), found.end(), [](const TokenMatch& a, const TokenMatch& b) {
    return a.length != b.length ? a.length > b.length : a.position > b.position;
  });
  if (found.size() > most) found.resize(most);
}

}  // namespace outpace
