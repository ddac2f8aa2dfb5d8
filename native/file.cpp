#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "api.h"

namespace outpace {

File::File(const std::string& path) : path_(path), fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (fd_ < 0) throw Error(path + ": cannot be opened: " + std::strerror(errno));
}

File::~File() { close(fd_); }

void File::read(uint64_t offset, void* out, uint64_t num_bytes) const {
  auto* p = static_cast<uint8_t*>(out);
  while (num_bytes > 0) {
    const ssize_t got = pread(fd_, p, num_bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(path_ + ": cannot be read: " + std::strerror(errno));
    if (got == 0) throw Error(path_ + ": ends before its tensors do; bring the file again");
    p += got;
    offset += static_cast<uint64_t>(got);
    num_bytes -= static_cast<uint64_t>(got);
  }
}

uint64_t File::size() const {
  struct stat status{};
  if (fstat(fd_, &status) != 0) throw Error(path_ + ": cannot be read: " + std::strerror(errno));
  return static_cast<uint64_t>(status.st_size);
}

}  // namespace outpace
