// The file of packed tiles: what was written is read back, and nothing else is ever taken for it.
#include "packed_cache.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <fstream>
#include <functional>
#include <string>

#include "check.h"

using namespace outpace;

namespace {

const Pause kNoPause = [] {};

std::function<void()> before_lock = [] {};  // what another process does just then
bool memory_is_short = false;               // as where memory is not promised beyond what there is

// A folder that goes away with its files.
struct Folder {
  std::string path;
  Folder() {
    char name[] = "/tmp/packed_cache_test.XXXXXX";
    path = mkdtemp(name);
  }
  ~Folder() {
    for (const std::string& name : names()) unlink((path + "/" + name).c_str());
    rmdir(path.c_str());
  }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    DIR* dir = opendir(path.c_str());
    while (const dirent* entry = readdir(dir)) {
      if (entry->d_name[0] != '.') found.emplace_back(entry->d_name);
    }
    closedir(dir);
    return found;
  }
};

PackedCache cache_in(const Folder& folder, char digit = 'a') {
  return {folder.path + "/m.packed", std::string(64, digit), "/models/m.gguf", true};
}

HugeBuffer random_tiles(uint64_t num_bytes) {
  HugeBuffer tiles(num_bytes, "a test");
  check::Random random{num_bytes};
  for (uint64_t i = 0; i + 8 <= num_bytes; i += 8) {
    const uint64_t word = random.bits();
    std::memcpy(tiles.data() + i, &word, 8);
  }
  return tiles;
}

void flip(const std::string& path, uint64_t at) {
  const int fd = open(path.c_str(), O_RDWR);
  uint8_t byte = 0;
  CHECK(pread(fd, &byte, 1, static_cast<off_t>(at)) == 1);
  byte ^= 0x10;
  CHECK(pwrite(fd, &byte, 1, static_cast<off_t>(at)) == 1);
  close(fd);
}

}  // namespace

// These take the place of the C library's.
extern "C" int mprotect(void* address, size_t size, int protection) noexcept {
  if (memory_is_short) {
    errno = ENOMEM;
    return -1;
  }
  return static_cast<int>(syscall(SYS_mprotect, address, size, protection));
}

extern "C" int flock(int fd, int operation) noexcept {
  before_lock();
  return static_cast<int>(syscall(SYS_flock, fd, operation));
}

TEST(a_flipped_bit_changes_the_checksum) {
  std::vector<uint8_t> data(211);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>(i * 7);
  const uint64_t sum = checksum(data.data(), data.size());
  for (size_t bit = 0; bit < data.size() * 8; ++bit) {
    data[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    CHECK(checksum(data.data(), data.size()) != sum, "bit %zu", bit);
    data[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
  }
  CHECK(checksum(data.data(), data.size()) == sum);
  CHECK(checksum(data.data(), data.size() - 1) != sum);
  data[63] ^= 0x80, data[127] ^= 0x80;  // the top bits of one lane's words
  CHECK(checksum(data.data(), data.size()) != sum);
}

TEST(what_was_written_is_read_back) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (const uint64_t num_bytes : {uint64_t{64}, kPackedChunk, 3 * kPackedChunk + 320, 70 * kPackedChunk}) {
      const Folder folder;
      const PackedCache cache = cache_in(folder);
      std::string note;
      CHECK(read_packed(cache, num_bytes, pool, kNoPause, note).data() == nullptr && note.empty());
      const HugeBuffer tiles = random_tiles(num_bytes);
      CHECK(write_packed(cache, tiles, pool, kNoPause, note), "%s", note.c_str());
      CHECK(folder.names().size() == 1);
      const HugeBuffer got = read_packed(cache, num_bytes, pool, kNoPause, note);
      CHECK(got.data() != nullptr && got.size() == num_bytes && note.empty(), "%s", note.c_str());
      if (got.data() != nullptr) CHECK(std::memcmp(got.data(), tiles.data(), num_bytes) == 0);
    }
  }
}

TEST(damage_is_found_and_said) {
  ThreadPool pool(2);
  const uint64_t num_bytes = 2 * kPackedChunk + 100 * 64;
  const HugeBuffer tiles = random_tiles(num_bytes);
  const uint64_t end = kPackedData + num_bytes;
  for (const uint64_t at : {offsetof(PackedHeader, num_bytes), offsetof(PackedHeader, sum),
                            sizeof(PackedHeader) + 1, uint64_t{3000}, kPackedSums, kPackedSums + 23,
                            kPackedData - 1, kPackedData, kPackedData + kPackedChunk, end - 1}) {
    const Folder folder;
    const PackedCache cache = cache_in(folder);
    std::string note;
    CHECK(write_packed(cache, tiles, pool, kNoPause, note));
    flip(cache.path, at);
    CHECK(read_packed(cache, num_bytes, pool, kNoPause, note).data() == nullptr, "byte %llu",
          static_cast<unsigned long long>(at));
    CHECK(note.find("damaged") != std::string::npos, "byte %llu: '%s'", static_cast<unsigned long long>(at),
          note.c_str());
  }
  for (const uint64_t size : {uint64_t{100}, kPackedSums, kPackedData, end - 4096, end - 1, end + 1}) {
    const Folder folder;
    const PackedCache cache = cache_in(folder);
    std::string note;
    CHECK(write_packed(cache, tiles, pool, kNoPause, note));
    CHECK(truncate(cache.path.c_str(), static_cast<off_t>(size)) == 0);
    CHECK(read_packed(cache, num_bytes, pool, kNoPause, note).data() == nullptr);
    CHECK(!note.empty(), "%llu bytes", static_cast<unsigned long long>(size));
  }
}

TEST(another_key_layout_or_size_is_not_taken) {
  ThreadPool pool(2);
  const Folder folder;
  const HugeBuffer tiles = random_tiles(kPackedChunk + 64);
  std::string note;
  CHECK(write_packed(cache_in(folder), tiles, pool, kNoPause, note));
  CHECK(read_packed(cache_in(folder, 'b'), tiles.size(), pool, kNoPause, note).data() == nullptr);
  CHECK(note.empty(), "a stale file is nothing to warn of: %s", note.c_str());
  CHECK(read_packed(cache_in(folder), tiles.size() - 64, pool, kNoPause, note).data() == nullptr);
  note.clear();
  flip(cache_in(folder).path, offsetof(PackedHeader, layout));
  CHECK(read_packed(cache_in(folder), tiles.size(), pool, kNoPause, note).data() == nullptr && note.empty());
}

TEST(memory_that_cannot_be_had_takes_no_addresses) {
  const auto num_pages = [] {
    std::ifstream file("/proc/self/statm");
    uint64_t pages = 0;
    file >> pages;
    return pages;
  };
  const uint64_t before = num_pages(), size = uint64_t{1} << 30;
  bool refused = false;
  memory_is_short = true;
  try {
    const HugeBuffer buffer(size, "a test");
  } catch (const MemoryError&) {
    refused = true;
  }
  memory_is_short = false;
  CHECK(refused);
  CHECK(num_pages() < before + size / 4096);
}

TEST(a_file_that_is_swept_as_it_is_made_is_made_again) {
  ThreadPool pool(1);
  const Folder folder;
  const HugeBuffer tiles = random_tiles(64);
  int sweeps = 2;
  before_lock = [&] {
    if (sweeps-- > 0) unlink((folder.path + "/" + folder.names().at(0)).c_str());
  };
  std::string note;
  CHECK(write_packed(cache_in(folder), tiles, pool, kNoPause, note), "%s", note.c_str());
  before_lock = [] {};
  CHECK(sweeps == -1 && folder.names() == std::vector<std::string>{"m.packed"});
}

TEST(an_interrupted_write_leaves_nothing) {
  ThreadPool pool(2);
  const Folder folder;
  const HugeBuffer tiles = random_tiles(kPackedChunk);
  std::string note;
  bool partial = false, thrown = false;
  const Pause stop = [&] {
    partial = folder.names().size() == 1 && folder.names()[0] != "m.packed";
    throw std::runtime_error("Ctrl-C");
  };
  try {
    write_packed(cache_in(folder), tiles, pool, stop, note);
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  CHECK(partial && thrown && folder.names().empty());
}

TEST(a_file_that_cannot_grow_is_given_up) {
  ThreadPool pool(2);
  const Folder folder;
  const HugeBuffer tiles = random_tiles(2 * kPackedChunk);
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  const rlimit small{kPackedData + kPackedChunk, old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  std::string note;
  CHECK(!write_packed(cache_in(folder), tiles, pool, kNoPause, note));
  setrlimit(RLIMIT_FSIZE, &old);
  CHECK(note.find("could not be kept: File too large") != std::string::npos, "%s", note.c_str());
  CHECK(folder.names().empty());
  PackedCache gone = cache_in(folder);
  gone.path = folder.path + "/no/such/m.packed";
  note.clear();
  CHECK(!write_packed(gone, tiles, pool, kNoPause, note) && !note.empty());
}
