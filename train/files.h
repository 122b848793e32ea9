// Files that must survive a crash, and what proves they did.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct XXH64_state_s;

namespace outeffhop {

/// The whole of a file. Throws Error(io) naming the path and the system's reason.
std::string read_file(const std::filesystem::path& path);

/// As std::filesystem::status, but where the system cannot say Error(io) is thrown; what is not there is no error.
std::filesystem::file_status status_of(const std::filesystem::path& path);

/// What a directory holds, in no order; nothing where there is no such directory. Throws Error(io).
std::vector<std::filesystem::path> entries_of(const std::filesystem::path& directory);

/// An exclusive lock on a file, which is made where it is missing. Let go on destruction, or when the process ends, however
/// it does.
class FileLock {
 public:
  explicit FileLock(const std::filesystem::path& path);  ///< throws Error(io) when the file cannot be made
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  /// False: another holds it. True, too, on a file system that has no locks.
  bool held() const { return held_; }

 private:
  int descriptor_ = -1;
  bool held_ = false;
};

/// What was handed to a file, whatever the disk then holds: size in bytes, and xxh64 (seed 0) as 16 hexadecimal digits.
struct WrittenFile {
  std::uint64_t bytes = 0;
  std::string xxh64;
};

/// A file under construction: written in order, and on the disk when finish() returns. What it holds is then dropped from
/// the page cache, so that reading it back asks the disk, and large files do not push out what is read all the time.
class DurableFile {
 public:
  explicit DurableFile(const std::filesystem::path& path);  ///< creates or truncates; throws Error(io)
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;

  void write(const void* data, std::size_t bytes);  ///< throws Error(io), e.g. when the disk is full
  WrittenFile finish();                             ///< fsync and close; throws Error(io)

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t bytes_ = 0;
  std::unique_ptr<XXH64_state_s, void (*)(XXH64_state_s*)> hash_;
};

/// Creates or replaces a file and fsyncs it. Not atomic: for files inside a directory that is itself renamed later.
WrittenFile write_durable(const std::filesystem::path& path, std::string_view contents);

/// Replaces a file at once: writes `path`.tmp, fsyncs it, renames it, fsyncs the directory.
void replace_file(const std::filesystem::path& path, std::string_view contents);

/// fsyncs what others have written to a file. Throws Error(io).
void sync_file(const std::filesystem::path& path);

/// Makes the entries of a directory (creations, renames) durable.
void sync_directory(const std::filesystem::path& directory);

/// xxh64 (seed 0) of bytes, as 16 hexadecimal digits.
std::string hash_bytes(std::string_view bytes);

/// The same of a file's bytes. Throws Error(io).
std::string hash_file(const std::filesystem::path& path);

}  // namespace outeffhop
