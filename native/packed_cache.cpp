#include "packed_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <vector>

#include "file.h"

namespace outpace {

namespace {

constexpr char kMagic[8] = {'O', 'U', 'T', 'P', 'A', 'C', 'K', 'D'};
constexpr uint64_t kSlice = 64;  // chunks between two pauses: 256 MB

uint64_t num_chunks(uint64_t num_bytes) { return (num_bytes + kPackedChunk - 1) / kPackedChunk; }

bool fits(const PackedCache& cache, uint64_t num_bytes) {
  return cache.key.size() == sizeof(PackedHeader::key) &&
         sizeof(PackedHeader) + cache.source.size() <= kPackedSums &&
         kPackedSums + num_chunks(num_bytes) * sizeof(uint64_t) <= kPackedData;
}

PackedHeader header_of(const PackedCache& cache, uint64_t num_bytes) {
  PackedHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.layout = kPackedLayout;
  header.path_bytes = static_cast<uint32_t>(cache.source.size());
  std::memcpy(header.key, cache.key.data(), sizeof header.key);
  header.num_bytes = num_bytes;
  header.chunk_bytes = kPackedChunk;
  return header;
}

// Calls body(chunk, its first byte, its bytes) for every chunk, spread over the threads, until one fails.
template <class Body>
bool for_chunks(uint64_t num_bytes, ThreadPool& pool, const Pause& pause, const Body& body) {
  std::atomic<bool> good{true};
  const uint64_t total = num_chunks(num_bytes);
  for (uint64_t slice = 0; slice < total && good; slice += kSlice) {
    const uint64_t count = std::min(kSlice, total - slice);
    pool.run([&](int) {
      pool.parallel(static_cast<int64_t>(count), 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last && good; ++i) {
          const uint64_t chunk = slice + static_cast<uint64_t>(i), at = chunk * kPackedChunk;
          if (!body(chunk, at, std::min(kPackedChunk, num_bytes - at))) good = false;
        }
      });
    });
    pause();
  }
  return good;
}

bool read_fully(int fd, uint8_t* out, uint64_t num_bytes, uint64_t offset) {
  while (num_bytes > 0) {
    const ssize_t got = pread(fd, out, num_bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    out += got, offset += static_cast<uint64_t>(got), num_bytes -= static_cast<uint64_t>(got);
  }
  return true;
}

bool write_fully(int fd, const uint8_t* data, uint64_t num_bytes, uint64_t offset) {
  while (num_bytes > 0) {
    const ssize_t put = pwrite(fd, data, num_bytes, static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    data += put, offset += static_cast<uint64_t>(put), num_bytes -= static_cast<uint64_t>(put);
  }
  return true;
}

// The file's own pages. Their bytes may still change on disk behind a mapping, but no program of ours ever
// writes to a file that has its name: it is replaced or removed, which leaves a mapping as it is.
HugeBuffer map_tiles(int fd, const std::vector<uint64_t>& sums, uint64_t num_bytes, ThreadPool& pool,
                     const Pause& pause, bool& damaged, bool& mixed) {
  HugeBuffer tiles = HugeBuffer::map(fd, kPackedData, num_bytes);
  if (tiles.data() == nullptr) return {};
  std::atomic<bool> readable{true};
  const bool good = for_chunks(num_bytes, pool, pause, [&](uint64_t chunk, uint64_t at, uint64_t size) {
    // Touching a page that cannot be read would end the process; this only says so.
    if (madvise(tiles.data() + at, size, MADV_POPULATE_READ) != 0) readable = false;
    return readable && checksum(tiles.data() + at, size) == sums[chunk];
  });
  damaged = readable && !good;
  // Small pages halve the bandwidth of every step, so such a file is copied.
  const uint64_t whole = num_bytes / kHugePage * kHugePage, huge = good ? huge_file_bytes(tiles) : 0;
  mixed = huge > 0;
  return good && whole > 0 && huge >= whole / 10 * 9 ? std::move(tiles) : HugeBuffer();
}

HugeBuffer copy_tiles(int fd, const std::vector<uint64_t>& sums, uint64_t num_bytes, ThreadPool& pool,
                      const Pause& pause, bool& damaged) {
  HugeBuffer tiles(num_bytes, "the weights");
  damaged = !for_chunks(num_bytes, pool, pause, [&](uint64_t chunk, uint64_t at, uint64_t size) {
    return read_fully(fd, tiles.data() + at, size, kPackedData + at) &&
           checksum(tiles.data() + at, size) == sums[chunk];
  });
  return damaged ? HugeBuffer() : std::move(tiles);
}

// A file under construction: locked, and removed unless it was kept.
class PartialFile {
 public:
  explicit PartialFile(const std::string& target) {
    do {
      if (fd_ >= 0) close(fd_);
      name_ = target + ".XXXXXX.partial";
      fd_ = mkostemps(name_.data(), 8, O_CLOEXEC);
    } while (fd_ >= 0 && !lock());
  }
  ~PartialFile() {
    if (fd_ < 0) return;
    if (!kept_) unlink(name_.c_str());
    close(fd_);
  }
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  int descriptor() const { return fd_; }

  // On the disk, whole, under its right name, or not at all.
  bool keep_as(const std::string& target) {
    if (fsync(fd_) != 0 || rename(name_.c_str(), target.c_str()) != 0) return false;
    kept_ = true;
    const int folder = open(target.substr(0, target.rfind('/') + 1).c_str(), O_RDONLY | O_CLOEXEC);
    if (folder >= 0) fsync(folder), close(folder);
    return true;
  }

 private:
  // Whoever sweeps holds the lock while he removes a file that nobody else had locked: perhaps this one, just
  // made. False then.
  bool lock() const {
    if (flock(fd_, LOCK_EX) != 0) return true;  // a file system without locks
    struct stat file{};
    return fstat(fd_, &file) != 0 || file.st_nlink > 0;
  }

  std::string name_;
  int fd_ = -1;
  bool kept_ = false;
};

}  // namespace

uint64_t checksum(const uint8_t* data, uint64_t num_bytes) {
  constexpr uint64_t kPrime = 0x9E3779B97F4A7C15u;
  constexpr int kLanes = 8;  // as many products as a core has under way
  // Each step is a bijection of the lane and of the word, so a single damaged word always shows.
  const auto mix = [](uint64_t lane, uint64_t word) {
    const uint64_t x = lane ^ word;
    return (x << 29 | x >> 35) * kPrime;
  };
  uint64_t lanes[kLanes], words[kLanes], tail[kLanes] = {};
  for (int i = 0; i < kLanes; ++i) lanes[i] = kPrime + static_cast<uint64_t>(i);
  uint64_t at = 0;
  for (; at + sizeof words <= num_bytes; at += sizeof words) {
    std::memcpy(words, data + at, sizeof words);
    for (int i = 0; i < kLanes; ++i) lanes[i] = mix(lanes[i], words[i]);
  }
  std::memcpy(tail, data + at, num_bytes - at);
  uint64_t sum = num_bytes;
  for (int i = 0; i < kLanes; ++i) sum = mix(mix(sum, lanes[i]), tail[i]);
  return sum ^ sum >> 32;
}

HugeBuffer read_packed(const PackedCache& cache, uint64_t num_bytes, ThreadPool& pool, const Pause& pause,
                       std::string& note) {
  if (cache.path.empty() || num_bytes == 0 || !fits(cache, num_bytes)) return {};
  if (access(cache.path.c_str(), F_OK) != 0) return {};
  bool damaged = true;
  HugeBuffer tiles;
  try {
    const File file(cache.path);
    std::vector<uint8_t> head(kPackedData);
    const bool whole = file.size() == kPackedData + num_bytes;
    PackedHeader header{};
    if (read_fully(file.descriptor(), head.data(), sizeof header, 0)) {
      std::memcpy(&header, head.data(), sizeof header);
      PackedHeader expected = header_of(cache, num_bytes);
      expected.sum = header.sum;
      if (std::memcmp(&header, &expected, offsetof(PackedHeader, num_bytes)) != 0) return {};  // another's
      if (whole && std::memcmp(&header, &expected, sizeof header) == 0) {
        file.read(0, head.data(), head.size());
        std::memset(head.data() + offsetof(PackedHeader, sum), 0, sizeof header.sum);
        damaged = checksum(head.data(), head.size()) != header.sum;
      }
    }
    if (!damaged) {
      std::vector<uint64_t> sums(num_chunks(num_bytes));
      std::memcpy(sums.data(), head.data() + kPackedSums, sums.size() * sizeof(uint64_t));
      bool mixed = false;
      tiles = map_tiles(file.descriptor(), sums, num_bytes, pool, pause, damaged, mixed);
      if (tiles.data() == nullptr && mixed) {
        // Memory was short when some of its pages came: read from the disk anew, they come as huge ones.
        posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED);
        tiles = map_tiles(file.descriptor(), sums, num_bytes, pool, pause, damaged, mixed);
      }
      if (tiles.data() == nullptr && !damaged)
        tiles = copy_tiles(file.descriptor(), sums, num_bytes, pool, pause, damaged);
    }
  } catch (const MemoryError&) {
    throw;
  } catch (const Error& error) {
    note = error.what();
    return {};
  }
  if (damaged) note = cache.path + ": is damaged; the weights are packed anew";
  return tiles;
}

bool write_packed(const PackedCache& cache, const HugeBuffer& tiles, ThreadPool& pool, const Pause& pause,
                  std::string& note) {
  const uint64_t num_bytes = tiles.size();
  if (cache.path.empty() || !cache.write || num_bytes == 0 || !fits(cache, num_bytes)) return false;
  const auto failed = [&] {
    if (!note.empty()) note += "; ";
    note += cache.path + ": the packed weights could not be kept: " + std::strerror(errno);
    return false;
  };
  PartialFile file(cache.path);
  const int fd = file.descriptor();
  if (fd < 0) return failed();
  // Room first: a full disk shows before anything is written.
  if (fallocate(fd, 0, 0, static_cast<off_t>(kPackedData + num_bytes)) != 0 && errno != EOPNOTSUPP)
    return failed();
  std::vector<uint8_t> head(kPackedData);
  std::atomic<int> error{0};
  const bool written = for_chunks(num_bytes, pool, pause, [&](uint64_t chunk, uint64_t at, uint64_t size) {
    const uint64_t sum = checksum(tiles.data() + at, size);
    std::memcpy(head.data() + kPackedSums + chunk * sizeof sum, &sum, sizeof sum);
    if (write_fully(fd, tiles.data() + at, size, kPackedData + at)) return true;
    error = errno;
    return false;
  });
  errno = error;
  if (!written) return failed();
  PackedHeader header = header_of(cache, num_bytes);
  std::memcpy(head.data(), &header, sizeof header);
  std::memcpy(head.data() + sizeof header, cache.source.data(), cache.source.size());
  header.sum = checksum(head.data(), head.size());
  std::memcpy(head.data(), &header, sizeof header);
  if (!write_fully(fd, head.data(), head.size(), 0) || !file.keep_as(cache.path)) return failed();
  return true;
}

}  // namespace outpace
