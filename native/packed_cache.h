// A model's packed tiles kept in a file, so that the next load neither reads nor packs the model's own.
//
// The file:  byte 0     PackedHeader, then the source's path
//            byte 4096  one 64-bit checksum for each chunk of 4 MB of tiles
//            byte 2 MB  the tiles, as they lie in memory; the file ends with them
//
// It is written under another name and renamed when whole, so a file with its right name is whole or was
// damaged later, which the checksums tell. It is valid for one key: a digest, made by the caller, of all that
// decides the tiles' bytes. The tiles are the same on every instruction set tier, so the tier is not in it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "api.h"
#include "memory.h"
#include "thread_pool.h"

namespace outpace {

constexpr uint64_t kPackedData = 2u << 20;   // where the tiles start: huge pages of a file are aligned in it
constexpr uint64_t kPackedSums = 4096;       // where the checksums start
constexpr uint64_t kPackedChunk = 4u << 20;  // bytes of tiles with one checksum

struct PackedHeader {
  char magic[8];        // "OUTPACKD"
  uint32_t layout;      // kPackedLayout
  uint32_t path_bytes;  // of the source's path, which follows
  char key[64];         // hexadecimal SHA-256
  uint64_t num_bytes;   // of tiles
  uint64_t chunk_bytes;
  uint64_t sum;  // checksum of the first kPackedData bytes, this field as 0
};
static_assert(sizeof(PackedHeader) == 104);

// A checksum of 64 bits: finds damage, not malice. About as quick as memory is read.
uint64_t checksum(const uint8_t* data, uint64_t num_bytes);

// Called between parts of the work; may throw to stop it.
using Pause = std::function<void()>;

// The tiles in huge pages, `num_bytes` of them: the file's own pages where the file system keeps it in huge
// ones, else a copy. Empty where there is no file for this key; `note` then says what was wrong with one
// that should have been good. Throws what `pause` throws, and MemoryError.
HugeBuffer read_packed(const PackedCache& cache, uint64_t num_bytes, ThreadPool& pool, const Pause& pause,
                       std::string& note);

// Writes the tiles; false, and why in `note`, where that could not be done. Nothing but a whole file is left,
// except where the process is killed: then one that ends in ".partial" and that nobody holds a lock on.
bool write_packed(const PackedCache& cache, const HugeBuffer& tiles, ThreadPool& pool, const Pause& pause,
                  std::string& note);

}  // namespace outpace
