// Shard files: mapped read-only and checked against their header before the first token is read.
#include "data/shards.h"

#include <glob.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>

#include "kernels/error.h"

namespace outeffhop {

static_assert(std::endian::native == std::endian::little, "shards are little-endian and read as they lie in memory");

namespace {

constexpr std::size_t kHeaderWords = 256;
constexpr std::size_t kHeaderBytes = kHeaderWords * sizeof(std::int32_t);

/// Files up to this size are read ahead whole; larger ones page by page as windows are drawn at random.
constexpr std::size_t kReadAheadBytes = std::size_t{64} << 20;

/// Reads of at least this size are fetched from the disk in one go.
constexpr std::size_t kLongReadBytes = std::size_t{1} << 20;

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

Shard::Shard(const std::string& path) : path_(path), file_(path, "shard") {
  const std::uint64_t bytes = file_.bytes().size();
  if (bytes < kHeaderBytes) {
    fail(ErrorKind::data, "shard {} holds {} bytes, less than the {} of a shard's header: it was cut or is not a shard",
         path, bytes, kHeaderBytes);
  }
  const Header header = parse_header(path, reinterpret_cast<const std::int32_t*>(file_.bytes().data()));
  const auto token_bytes = static_cast<std::uint64_t>(header.bytes_per_token);
  const bool fits = header.token_count <= (std::numeric_limits<std::uint64_t>::max() - kHeaderBytes) / token_bytes;
  if (!fits || bytes != kHeaderBytes + header.token_count * token_bytes) {
    fail(ErrorKind::data,
         "shard {} holds {} bytes but its header promises {} tokens of {} bytes after {} bytes of header: it was cut, was "
         "written to, or is not a shard",
         path, bytes, header.token_count, token_bytes, kHeaderBytes);
  }
  token_count_ = header.token_count;
  version_ = header.version;
  bytes_per_token_ = header.bytes_per_token;
  // Advice only: its failure changes nothing but speed.
  ::madvise(const_cast<std::byte*>(file_.bytes().data()), bytes, bytes <= kReadAheadBytes ? MADV_WILLNEED : MADV_RANDOM);
}

void Shard::read(std::uint64_t begin, std::uint64_t count, std::int32_t* out) const {
  require(begin <= token_count_ && count <= token_count_ - begin, "tokens [{}, {} + {}) read from shard {} of {} tokens",
          begin, begin, count, path_, token_count_);
  const std::byte* const tokens = file_.bytes().data() + kHeaderBytes;
  const auto token_bytes = static_cast<std::size_t>(bytes_per_token_);
  if (count * token_bytes >= kLongReadBytes) {
    // Page faults of a mapping that is read at random fetch a page each: a long read says ahead what it will need.
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const std::size_t first = (kHeaderBytes + begin * token_bytes) / page * page;
    ::madvise(const_cast<std::byte*>(file_.bytes().data()) + first, kHeaderBytes + (begin + count) * token_bytes - first,
              MADV_WILLNEED);
  }
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

std::vector<std::string> matching_shards(const std::string& pattern) { return matching_paths(pattern); }

}  // namespace outeffhop
