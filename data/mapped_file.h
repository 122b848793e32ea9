// A file's bytes as memory, read-only.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace outeffhop {

/// Maps a regular file. `what` names it in messages ("shard"). Throws Error(io) where it cannot be opened or mapped,
/// Error(data) where it is no regular file.
class MappedFile {
 public:
  MappedFile(const std::string& path, const char* what);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace outeffhop
