// Shards of both versions, and every way in which one can be damaged.
#include "data/sampler.h"
#include "tests/data/data_support.h"

using namespace outeffhop;
using namespace outeffhop::test;

TEST_CASE("an llm.c shard is read unchanged") {
  const TemporaryDirectory directory;
  const std::string path = write_shard(directory.path() / "tiny_shakespeare_train.bin", {50256, 5962, 22307, 0, 65535});
  const Shard shard(path);
  CHECK(shard.path() == path);
  CHECK(shard.version() == 1);
  CHECK(shard.bytes_per_token() == 2);
  REQUIRE(shard.token_count() == 5);
  std::vector<std::int32_t> tokens(5);
  shard.read(0, 5, tokens.data());
  CHECK(tokens == std::vector<std::int32_t>{50256, 5962, 22307, 0, 65535});
  tokens.assign(2, -1);
  shard.read(1, 2, tokens.data());
  CHECK(tokens == std::vector<std::int32_t>{5962, 22307});
  shard.read(5, 0, tokens.data());
  CHECK_THROWS_AS(shard.read(4, 2, tokens.data()), Error);
  CHECK_THROWS_AS(shard.read(6, 0, tokens.data()), Error);
}

TEST_CASE("version 2 holds two or four bytes a token") {
  const TemporaryDirectory directory;
  for (const int width : {2, 4}) {
    std::string bytes = shard_header({20240520u, 2u, static_cast<std::uint32_t>(width), 3u, 0u});
    const std::uint32_t last = width == 2 ? 65535u : 250001u;
    for (const std::uint32_t token : {7u, 0u, last}) append_little_endian(bytes, token, width);
    const Shard shard(write_bytes(directory.path() / "two.bin", bytes));
    CHECK(shard.version() == 2);
    CHECK(shard.bytes_per_token() == width);
    REQUIRE(shard.token_count() == 3);
    std::vector<std::int32_t> tokens(3);
    shard.read(0, 3, tokens.data());
    CHECK(tokens == std::vector<std::int32_t>{7, 0, static_cast<std::int32_t>(last)});
    shard.read(2, 1, tokens.data());
    CHECK(tokens[0] == static_cast<std::int32_t>(last));
  }
}

TEST_CASE("tokens beyond 2 and 4 GiB of a shard are found") {
  const TemporaryDirectory directory;
  constexpr std::uint64_t kTokens = (std::uint64_t{1} << 31) + 5;  // of two bytes; a sparse file takes no room on the disk
  const std::string path = write_bytes(directory.path() / "large.bin",
                                       shard_header({20240520u, 2u, 2u, kTokens & 0xffffffffu, kTokens >> 32}));
  std::filesystem::resize_file(path, 1024 + 2 * kTokens);
  const std::vector<std::uint64_t> places = {(std::uint64_t{1} << 30) - 512, std::uint64_t{1} << 30,
                                             (std::uint64_t{1} << 31) - 512, kTokens - 4};
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    for (std::size_t i = 0; i < places.size(); ++i) {
      std::string bytes;
      for (std::uint64_t k = 0; k < 4; ++k) append_little_endian(bytes, 1000 * (i + 1) + k, 2);
      file.seekp(static_cast<std::streamoff>(1024 + 2 * places[i]));
      file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    }
    REQUIRE(file.good());
  }
  const ShardSet shards(path);
  REQUIRE(shards.shards()[0].token_count() == kTokens);
  const StreamSampler sampler(shards, 4, 1, false);
  REQUIRE(sampler.sample_count() == kTokens / 4);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const auto first = static_cast<std::int32_t>(1000 * (i + 1));
    const std::vector<std::int32_t> expected = {first, first + 1, first + 2, first + 3};
    std::vector<std::int32_t> tokens(4);
    shards.shards()[0].read(places[i], 4, tokens.data());
    CHECK(tokens == expected);
    if (places[i] % 4 != 0) continue;
    Batch batch;
    batch.input_ids.assign(4, -1);
    sampler.fill(places[i] / 4, 65536, batch, 0);
    CHECK(batch.input_ids == expected);
  }
}

TEST_CASE("a moved shard keeps its tokens") {
  const TemporaryDirectory directory;
  Shard first(write_shard(directory.path() / "a.bin", {1, 2, 3}));
  Shard second(write_shard(directory.path() / "b.bin", {9}));
  Shard moved(std::move(first));
  second = std::move(moved);
  std::vector<std::int32_t> tokens(3);
  second.read(0, 3, tokens.data());
  CHECK(tokens == std::vector<std::int32_t>{1, 2, 3});
}

TEST_CASE("damaged shards are refused by name") {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "damaged.bin";
  const std::string name = path.string();

  SECTION("missing") { CHECK_ERROR(ErrorKind::io, Shard{name}, "cannot open", name); }
  SECTION("a directory") { CHECK_ERROR(ErrorKind::data, Shard{directory.path().string()}, "not a regular file"); }
  SECTION("empty") {
    write_bytes(path, "");
    CHECK_ERROR(ErrorKind::data, Shard{name}, name, "0 bytes", "1024");
  }
  SECTION("shorter than a header") {
    write_bytes(path, std::string(1023, 'x'));
    CHECK_ERROR(ErrorKind::data, Shard{name}, name, "1023 bytes", "1024");
  }
  SECTION("wrong magic") {
    write_bytes(path, shard_header({20240521u, 1u, 1u}) + "ab");
    CHECK_ERROR(ErrorKind::data, Shard{name}, name, "20240521", "20240520");
  }
  SECTION("wrong version") {
    write_bytes(path, shard_header({20240520u, 3u, 1u}) + "ab");
    CHECK_ERROR(ErrorKind::data, Shard{name}, name, "version 3", "1 or 2");
  }
  SECTION("cut inside the tokens") {
    write_shard(path, counting_tokens(100));
    std::filesystem::resize_file(path, 1024 + 199);
    CHECK_ERROR(ErrorKind::data, Shard{name}, name, "1223 bytes", "100 tokens", "cut");
  }
  SECTION("longer than promised") {
    write_shard(path, counting_tokens(100));
    std::filesystem::resize_file(path, 1024 + 202);
    CHECK_ERROR(ErrorKind::data, Shard{name}, name, "1226 bytes", "100 tokens");
  }
  SECTION("no tokens") {
    write_shard(path, {});
    CHECK_ERROR(ErrorKind::data, Shard{name}, name, "0 tokens");
    write_bytes(path, shard_header({20240520u, 2u, 4u, 0u, 0u}));
    CHECK_ERROR(ErrorKind::data, Shard{name}, name, "0 tokens");
  }
  SECTION("a negative count") {
    write_bytes(path, shard_header({20240520u, 1u, 0xffffffffu}) + "ab");
    CHECK_ERROR(ErrorKind::data, Shard{name}, name, "-1 tokens");
  }
  SECTION("bytes a token that no version has") {
    write_bytes(path, shard_header({20240520u, 2u, 3u, 1u, 0u}) + "abc");
    CHECK_ERROR(ErrorKind::data, Shard{name}, name, "3 bytes a token", "2 or 4");
  }
  SECTION("the count's high word counts") {
    write_bytes(path, shard_header({20240520u, 2u, 2u, 1u, 1u}) + "ab");
    CHECK_ERROR(ErrorKind::data, Shard{name}, name, "4294967297 tokens");
  }
  SECTION("a count whose bytes overflow 64 bits to the right size") {
    write_bytes(path, shard_header({20240520u, 2u, 4u, 1u, 0x40000000u}) + "abcd");
    CHECK_ERROR(ErrorKind::data, Shard{name}, name, "4611686018427387905 tokens");
  }
}

TEST_CASE("a shard set is sorted by path, whatever the pattern's order") {
  const TemporaryDirectory directory;
  const std::string base = directory.path().string();
  write_shard(directory.path() / "b_000001.bin", {4, 5});
  write_shard(directory.path() / "b_000000.bin", {2, 3});
  write_shard(directory.path() / "a_000000.bin", {1});
  const ShardSet set(base + "/{b,a,a}_*.bin");
  REQUIRE(set.shards().size() == 3);
  CHECK(set.token_count() == 5);
  CHECK(set.shards()[0].path() == base + "/a_000000.bin");
  CHECK(set.shards()[1].path() == base + "/b_000000.bin");
  CHECK(set.shards()[2].path() == base + "/b_000001.bin");
  CHECK(set.metadata().vocab_size == 0);
  CHECK(set.metadata().mask_id == -1);

  CHECK_ERROR(ErrorKind::data, ShardSet{base + "/c_*.bin"}, "no shard matches", base + "/c_*.bin");
  CHECK_ERROR(ErrorKind::data, ShardSet{base + "/no/such/directory/*.bin"}, "no shard matches");
  write_bytes(directory.path() / "b_000002.bin", "not a shard");
  CHECK_ERROR(ErrorKind::data, ShardSet{base + "/b_*.bin"}, "b_000002.bin");
}

TEST_CASE("~ is the home directory") {
  const TemporaryDirectory directory;
  write_shard(directory.path() / "s.bin", {1});
  const char* home = std::getenv("HOME");
  const std::string before = home ? home : "";
  setenv("HOME", directory.path().c_str(), 1);
  const std::size_t count = ShardSet("~/s*.bin").shards().size();
  if (home) {
    setenv("HOME", before.c_str(), 1);
  } else {
    unsetenv("HOME");
  }
  CHECK(count == 1);
}

TEST_CASE("metadata.json beside the first shard is read") {
  const TemporaryDirectory directory;
  write_shard(directory.path() / "s.bin", {1});
  const std::filesystem::path path = directory.path() / "metadata.json";
  const std::string pattern = directory.path().string() + "/*.bin";
  CHECK_FALSE(ShardSet(pattern).metadata().present);

  write_bytes(path, R"({"version": 1, "vocab_size": 30522, "special_ids": [0, 100, 101, 102, 103], "mask_id": 103,
    "pad_id": 0, "cls_id": 101, "sep_id": 102, "bos_id": null, "eos_id": -1, "tokenizer": {"kind": "wordpiece"},
    "unigram_perplexity": {"all": 831.25, "non_special": 900}})");
  const ShardMetadata metadata = ShardSet(pattern).metadata();
  CHECK(metadata.present);
  CHECK(metadata.vocab_size == 30522);
  CHECK(metadata.special_ids == std::vector<std::int32_t>{0, 100, 101, 102, 103});
  CHECK(metadata.mask_id == 103);
  CHECK(metadata.pad_id == 0);
  CHECK(metadata.cls_id == 101);
  CHECK(metadata.sep_id == 102);
  CHECK(metadata.bos_id == -1);
  CHECK(metadata.eos_id == -1);
  CHECK(metadata.unigram_perplexity_all == 831.25);
  CHECK(metadata.unigram_perplexity_non_special == 900.0);

  write_bytes(path, "{}");
  CHECK(ShardSet(pattern).metadata().vocab_size == 0);

  struct Case {
    const char* json;
    std::vector<std::string> parts;
  };
  const std::vector<Case> cases = {
      {"{\"vocab_size\": 10", {"not valid JSON"}},
      {"", {"not valid JSON"}},
      {"[1]", {"array", "object"}},
      {R"({"version": 2})", {"version = 2", "1 to 1"}},
      {R"({"vocab_size": "many"})", {"vocab_size = \"many\"", "whole number"}},
      {R"({"vocab_size": 0})", {"vocab_size = 0"}},
      {R"({"vocab_size": 18446744073709551615})", {"vocab_size = 18446744073709551615"}},
      {R"({"vocab_size": 10.5})", {"vocab_size = 10.5"}},
      {R"({"vocab_size": 10, "mask_id": 10})", {"mask_id = 10", "-1 to 9"}},
      {R"({"vocab_size": 10, "special_ids": 3})", {"special_ids = 3", "list"}},
      {R"({"vocab_size": 10, "special_ids": [3, -1]})", {"special_ids = -1"}},
      {R"({"unigram_perplexity": 3})", {"unigram_perplexity = 3", "object"}},
      {R"({"unigram_perplexity": {"all": 0.5}})", {"unigram_perplexity.all = 0.5", "at least 1"}},
  };
  for (const Case& wrong : cases) {
    write_bytes(path, wrong.json);
    const Error error = caught_error([&] { ShardSet{pattern}; });
    INFO(wrong.json << " gives: " << error.what());
    CHECK(error.kind() == ErrorKind::data);
    CHECK(std::string(error.what()).find(path.string()) != std::string::npos);
    for (const std::string& part : wrong.parts) CHECK(std::string(error.what()).find(part) != std::string::npos);
  }
}
