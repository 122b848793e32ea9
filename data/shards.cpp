// Shard files: mapped read-only and checked against their header before the first token is read.
#include "data/shards.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <utility>

#include "data/mapping_guard.h"
#include "kernels/error.h"

namespace outeffhop {

static_assert(std::endian::native == std::endian::little, "shards are little-endian and read as they lie in memory");

namespace {

constexpr std::size_t kHeaderWords = 256;
constexpr std::size_t kHeaderBytes = kHeaderWords * sizeof(std::int32_t);

/// Files up to this size are read ahead whole; larger ones page by page as windows are drawn at random.
constexpr std::size_t kReadAheadBytes = std::size_t{64} << 20;

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

struct Header {
  int version;
  int bytes_per_token;
  std::uint64_t token_count;
};

/// What the first 1024 bytes promise; everything in it that can be wrong without knowing the file's size.
Header parse_header(const std::string& path, const std::int32_t* words) {
  if (words[0] != kShardMagic) {
    fail(ErrorKind::data,
         "{} is not a token shard: its first word is {}, expected {} (scripts/tokenize_corpus.py makes shards)", path,
         words[0], kShardMagic);
  }
  if (words[1] == 1) {
    if (words[2] <= 0)
      fail(ErrorKind::data, "shard {} promises {} tokens in its header, expected at least 1", path, words[2]);
    return {1, 2, static_cast<std::uint64_t>(words[2])};
  }
  if (words[1] == 2) {
    if (words[2] != 2 && words[2] != 4) {
      fail(ErrorKind::data, "shard {} (version 2) says {} bytes a token in its header, expected 2 or 4", path, words[2]);
    }
    const std::uint64_t count =
        (std::uint64_t{static_cast<std::uint32_t>(words[4])} << 32) | static_cast<std::uint32_t>(words[3]);
    if (count == 0) fail(ErrorKind::data, "shard {} promises 0 tokens in its header, expected at least 1", path);
    return {2, words[2], count};
  }
  fail(ErrorKind::data, "shard {} has format version {}, expected 1 or 2", path, words[1]);
}

std::vector<std::string> matching_paths(const std::string& pattern) {
  glob_t matches{};
  const int status = ::glob(pattern.c_str(), GLOB_TILDE | GLOB_BRACE, nullptr, &matches);
  std::vector<std::string> paths;
  if (status == 0) paths.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  ::globfree(&matches);
  if (status == GLOB_NOSPACE || status == GLOB_ABORTED) {
    fail(ErrorKind::io, "cannot list the shards matching \"{}\": {}", pattern,
         status == GLOB_NOSPACE ? "out of memory" : "a directory could not be read");
  }
  if (paths.empty()) {
    fail(ErrorKind::data, "no shard matches \"{}\": check the path, or make shards with scripts/tokenize_corpus.py",
         pattern);
  }
  // glob sorts by locale and one brace alternative at a time; the data order must depend on neither.
  std::sort(paths.begin(), paths.end());
  paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
  return paths;
}

}  // namespace

Shard::Shard(const std::string& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(ErrorKind::io, "cannot open shard {}: {}", path, std::strerror(errno));
  const FileDescriptor file(fd);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0)
    fail(ErrorKind::io, "cannot read the size of shard {}: {}", path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail(ErrorKind::data, "shard {} is not a regular file", path);
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  if (bytes < kHeaderBytes) {
    fail(ErrorKind::data, "shard {} holds {} bytes, less than the {} of a shard's header: it was cut or is not a shard",
         path, bytes, kHeaderBytes);
  }
  void* mapping = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (mapping == MAP_FAILED)
    fail(ErrorKind::io, "cannot map the {} bytes of shard {}: {}", bytes, path, std::strerror(errno));
  // From here on the mapping is owned, but a constructor that throws runs no destructor.
  try {
    const Header header = parse_header(path, static_cast<const std::int32_t*>(mapping));
    const auto token_bytes = static_cast<std::uint64_t>(header.bytes_per_token);
    const bool fits = header.token_count <= (std::numeric_limits<std::uint64_t>::max() - kHeaderBytes) / token_bytes;
    if (!fits || bytes != kHeaderBytes + header.token_count * token_bytes) {
      fail(ErrorKind::data,
           "shard {} holds {} bytes but its header promises {} tokens of {} bytes after {} bytes of header: it was cut, was "
           "written to, or is not a shard",
           path, bytes, header.token_count, token_bytes, kHeaderBytes);
    }
    mapping_ = mapping;
    mapping_bytes_ = bytes;
    token_count_ = header.token_count;
    version_ = header.version;
    bytes_per_token_ = header.bytes_per_token;
  } catch (...) {
    ::munmap(mapping, bytes);
    throw;
  }
  guard_mapping(mapping_, mapping_bytes_, path);
  // Advice only: its failure changes nothing but speed.
  ::madvise(mapping_, mapping_bytes_, mapping_bytes_ <= kReadAheadBytes ? MADV_WILLNEED : MADV_RANDOM);
}

Shard::~Shard() {
  if (!mapping_) return;
  unguard_mapping(mapping_);
  ::munmap(mapping_, mapping_bytes_);
}

Shard::Shard(Shard&& other) noexcept
    : path_(std::move(other.path_)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_bytes_(std::exchange(other.mapping_bytes_, 0)),
      token_count_(std::exchange(other.token_count_, 0)),
      version_(other.version_),
      bytes_per_token_(other.bytes_per_token_) {}

Shard& Shard::operator=(Shard&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  std::swap(token_count_, other.token_count_);
  std::swap(version_, other.version_);
  std::swap(bytes_per_token_, other.bytes_per_token_);
  return *this;
}

void Shard::read(std::uint64_t begin, std::uint64_t count, std::int32_t* out) const {
  require(begin <= token_count_ && count <= token_count_ - begin, "tokens [{}, {} + {}) read from shard {} of {} tokens",
          begin, begin, count, path_, token_count_);
  const auto* tokens = static_cast<const unsigned char*>(mapping_) + kHeaderBytes;
  if (bytes_per_token_ == 2) {
    const auto* from = reinterpret_cast<const std::uint16_t*>(tokens) + begin;
    std::copy(from, from + count, out);
  } else {
    std::memcpy(out, tokens + begin * sizeof(std::int32_t), count * sizeof(std::int32_t));
  }
}

ShardSet::ShardSet(const std::string& pattern) {
  for (const std::string& path : matching_paths(pattern)) {
    shards_.emplace_back(path);
    token_count_ += shards_.back().token_count();
  }
  const std::filesystem::path metadata = std::filesystem::path(shards_.front().path()).parent_path() / "metadata.json";
  std::error_code unreachable;
  if (std::filesystem::exists(metadata, unreachable)) metadata_ = read_shard_metadata(metadata.string());
}

}  // namespace outeffhop
