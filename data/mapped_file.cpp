#include "data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "data/mapping_guard.h"
#include "kernels/error.h"

namespace outeffhop {
namespace {

/// Closes a file descriptor at the end of a scope.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() { ::close(fd_); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

MappedFile::MappedFile(const std::string& path, const char* what) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(ErrorKind::io, "cannot open {} {}: {}", what, path, std::strerror(errno));
  const FileDescriptor file(fd);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0)
    fail(ErrorKind::io, "cannot read the size of {} {}: {}", what, path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail(ErrorKind::data, "{} {} is not a regular file", what, path);
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size == 0) return;  // nothing can be mapped of it
  void* const mapping = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (mapping == MAP_FAILED)
    fail(ErrorKind::io, "cannot map the {} bytes of {} {}: {}", size, what, path, std::strerror(errno));
  data_ = mapping;
  size_ = size;
  guard_mapping(data_, size_, path);
}

MappedFile::~MappedFile() {
  if (!data_) return;
  unguard_mapping(data_);
  ::munmap(data_, size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace outeffhop
