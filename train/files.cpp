#include "train/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <utility>
#include <vector>

#include "kernels/error.h"

namespace outeffhop {
namespace {

std::string reason() { return std::strerror(errno); }

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) fail(ErrorKind::io, "cannot read {}: it is a directory", path.string());
  std::ifstream in(path, std::ios::binary);
  if (!in) fail(ErrorKind::io, "cannot read {}: {}", path.string(), reason());
  std::ostringstream contents;
  contents << in.rdbuf();
  if (in.bad()) fail(ErrorKind::io, "cannot read {}: {}", path.string(), reason());
  return contents.str();
}

std::filesystem::file_status status_of(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  // The error code is also set for what is not there.
  if (!std::filesystem::status_known(status)) fail(ErrorKind::io, "cannot look at {}: {}", path.string(), error.message());
  return status;
}

std::vector<std::filesystem::path> entries_of(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> entries;
  if (!std::filesystem::exists(status_of(directory))) return entries;
  std::error_code error;
  std::filesystem::directory_iterator at(directory, error);
  for (; !error && at != std::filesystem::directory_iterator(); at.increment(error)) entries.push_back(at->path());
  if (error) fail(ErrorKind::io, "cannot list the directory {}: {}", directory.string(), error.message());
  return entries;
}

FileLock::FileLock(const std::filesystem::path& path)
    : descriptor_(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644)) {
  if (descriptor_ < 0) fail(ErrorKind::io, "cannot create {}: {}", path.string(), reason());
  int result = 0;
  do {
    result = ::flock(descriptor_, LOCK_EX | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  held_ = result == 0 || errno != EWOULDBLOCK;
}

FileLock::~FileLock() { ::close(descriptor_); }

DurableFile::DurableFile(const std::filesystem::path& path)
    : path_(path), hash_(XXH64_createState(), [](XXH64_state_s* state) { XXH64_freeState(state); }) {
  require(hash_ != nullptr && XXH64_reset(hash_.get(), 0) == XXH_OK, "cannot start the hash of {}", path.string());
  descriptor_ = ::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail(ErrorKind::io, "cannot create {}: {}", path_.string(), reason());
}

DurableFile::~DurableFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void DurableFile::write(const void* data, std::size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    // Block by block, so that the hash finds it in the processor's cache.
    const ssize_t written = ::write(descriptor_, at, std::min<std::size_t>(bytes, std::size_t{1} << 20));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail(ErrorKind::io, "cannot write {}: {}", path_.string(), reason());
    const auto count = static_cast<std::size_t>(written);
    XXH64_update(hash_.get(), at, count);
    bytes_ += count;
    at += count;
    bytes -= count;
  }
}

WrittenFile DurableFile::finish() {
  if (::fsync(descriptor_) != 0) fail(ErrorKind::io, "cannot bring {} to the disk: {}", path_.string(), reason());
  ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);  // advice: where it is not taken, nothing is lost
  const int descriptor = std::exchange(descriptor_, -1);
  if (::close(descriptor) != 0) fail(ErrorKind::io, "cannot close {}: {}", path_.string(), reason());
  return {bytes_, fmt::format("{:016x}", XXH64_digest(hash_.get()))};
}

WrittenFile write_durable(const std::filesystem::path& path, std::string_view contents) {
  DurableFile file(path);
  file.write(contents.data(), contents.size());
  return file.finish();
}

void replace_file(const std::filesystem::path& path, std::string_view contents) {
  const std::filesystem::path temporary = path.string() + ".tmp";
  write_durable(temporary, contents);
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) fail(ErrorKind::io, "cannot rename {} to {}: {}", temporary.string(), path.string(), error.message());
  sync_directory(path.has_parent_path() ? path.parent_path() : std::filesystem::path("."));
}

void sync_file(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(ErrorKind::io, "cannot open {}: {}", path.string(), reason());
  const int result = ::fsync(descriptor);
  const int saved = errno;
  ::close(descriptor);
  if (result != 0) fail(ErrorKind::io, "cannot bring {} to the disk: {}", path.string(), std::strerror(saved));
}

void sync_directory(const std::filesystem::path& directory) {
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail(ErrorKind::io, "cannot open the directory {}: {}", directory.string(), reason());
  const int result = ::fsync(descriptor);
  const int saved = errno;
  ::close(descriptor);
  // Some network file systems cannot fsync a directory and say so; their renames are durable without it.
  if (result != 0 && saved != EINVAL && saved != ENOTSUP) {
    fail(ErrorKind::io, "cannot bring the directory {} to the disk: {}", directory.string(), std::strerror(saved));
  }
}

std::string hash_bytes(std::string_view bytes) { return fmt::format("{:016x}", XXH64(bytes.data(), bytes.size(), 0)); }

std::string hash_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) fail(ErrorKind::io, "cannot read {}: {}", path.string(), reason());
  const std::unique_ptr<XXH64_state_t, decltype(&XXH64_freeState)> state(XXH64_createState(), &XXH64_freeState);
  require(state != nullptr && XXH64_reset(state.get(), 0) == XXH_OK, "cannot start the hash of {}", path.string());
  std::vector<char> block(std::size_t{1} << 20);
  while (in) {
    in.read(block.data(), static_cast<std::streamsize>(block.size()));
    XXH64_update(state.get(), block.data(), static_cast<std::size_t>(in.gcount()));
  }
  if (in.bad()) fail(ErrorKind::io, "cannot read {}: {}", path.string(), reason());
  return fmt::format("{:016x}", XXH64_digest(state.get()));
}

}  // namespace outeffhop
