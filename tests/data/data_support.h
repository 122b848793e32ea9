// Shards written byte by byte, as llm.c writes them, so that the tests do not lean on our own writer.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "data/shards.h"
#include "kernels/error.h"
#include "tests/catch.h"
#include "tests/test_support.h"

namespace outeffhop::test {

inline void append_little_endian(std::string& bytes, std::uint64_t value, int width) {
  for (int i = 0; i < width; ++i) bytes.push_back(static_cast<char>((value >> (8 * i)) & 0xff));
}

/// 256 words, the given ones first, zeros after them.
inline std::string shard_header(const std::vector<std::uint32_t>& words) {
  std::string bytes;
  for (std::size_t i = 0; i < 256; ++i) append_little_endian(bytes, i < words.size() ? words[i] : 0, 4);
  return bytes;
}

inline std::string write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(file.good());
  return path.string();
}

/// A version 1 shard: what llm.c's own data scripts write.
inline std::string write_shard(const std::filesystem::path& path, const std::vector<std::uint16_t>& tokens) {
  std::string bytes = shard_header({20240520u, 1u, static_cast<std::uint32_t>(tokens.size())});
  for (const std::uint16_t token : tokens) append_little_endian(bytes, token, 2);
  return write_bytes(path, bytes);
}

/// first, first + 1, ... : every token tells where it stood.
inline std::vector<std::uint16_t> counting_tokens(std::size_t count, std::uint16_t first = 0) {
  std::vector<std::uint16_t> tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<std::uint16_t>(first + i);
  return tokens;
}

/// The error `action` throws; fails the test when it throws none.
template <class Action>
Error caught_error(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  FAIL("no error was thrown");
  return Error(ErrorKind::internal, "");
}

#define CHECK_ERROR(kind_expected, action, ...)                                        \
  do {                                                                                 \
    const ::outeffhop::Error error = ::outeffhop::test::caught_error([&] { action; }); \
    CHECK(error.kind() == (kind_expected));                                            \
    for (const std::string& part : std::vector<std::string>{__VA_ARGS__}) {            \
      INFO("error: " << error.what());                                                 \
      INFO("expected part: " << part);                                                 \
      CHECK(std::string(error.what()).find(part) != std::string::npos);                \
    }                                                                                  \
  } while (false)

}  // namespace outeffhop::test
