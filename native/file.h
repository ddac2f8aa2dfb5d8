// An open file, read at any offset from any thread.
#pragma once

#include <cstdint>
#include <string>

namespace outpace {

class File {
 public:
  // Throws Error that names the path.
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // Throws Error where the file ends before, or cannot be read.
  void read(uint64_t offset, void* out, uint64_t num_bytes) const;
  uint64_t size() const;
  int descriptor() const { return fd_; }

 private:
  std::string path_;
  int fd_;
};

}  // namespace outpace
