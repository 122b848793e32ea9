// Documents: where they begin, and rows that hold them whole.
#include "data/documents.h"

#include <algorithm>
#include <random>
#include <set>

#include "data/document_sampler.h"
#include "data/loader.h"
#include "data/objective.h"
#include "tests/data/data_support.h"

using namespace outeffhop;
using namespace outeffhop::test;

namespace {

std::string index_bytes(const std::vector<std::uint64_t>& starts) {
  std::string bytes = shard_header({20240521u, 1u, static_cast<std::uint32_t>(starts.size()), 0u});
  for (const std::uint64_t start : starts) append_little_endian(bytes, start, 8);
  return bytes;
}

std::vector<std::uint64_t> parse(const std::string& bytes, std::uint64_t tokens) {
  return parse_document_index(std::as_bytes(std::span(bytes)), tokens, "x.idx");
}

using Starts = std::vector<std::uint64_t>;

/// Two shards of documents of 1 to 60 tokens, with an index each. Every token tells where it stood.
struct Corpus {
  Corpus() {
    std::mt19937_64 rng(5);
    std::uint64_t first = 0;
    for (const std::string name : {"0", "1"}) {
      Starts inside;
      std::uint64_t tokens = 0;
      for (int d = 0; d < 200; ++d) {
        inside.push_back(tokens);
        starts.push_back(first + tokens);
        tokens += 1 + rng() % 60;
      }
      write_shard(directory.path() / (name + ".bin"), counting_tokens(tokens, static_cast<std::uint16_t>(first)));
      write_bytes(directory.path() / (name + ".idx"), index_bytes(inside));
      first += tokens;
    }
    starts.push_back(first);
  }
  std::string pattern() const { return directory.path().string() + "/*.bin"; }
  TemporaryDirectory directory;
  Starts starts;
};

constexpr std::int64_t kT = 16;
constexpr std::int64_t kVocab = 65536;

DocumentSettings settings(bool packing, std::uint64_t seed = 3) { return {kT, seed, true, packing, 9}; }

}  // namespace

TEST_CASE("an index tells where documents begin; empty ones are left out") {
  CHECK(parse(index_bytes({0, 3, 3, 7, 10, 10}), 10) == Starts{0, 3, 7});
  CHECK(parse(index_bytes({0, 0, 1}), 10) == Starts{0, 1});
}

TEST_CASE("a damaged index is refused by what is wrong with it") {
  const std::string good = index_bytes({0, 3, 7});
  const auto with = [&](std::size_t byte, char value) {
    std::string bytes = good;
    bytes[byte] = value;
    return bytes;
  };
  CHECK_ERROR(ErrorKind::data, parse(good.substr(0, 1000), 10), "x.idx", "1000 bytes");
  CHECK_ERROR(ErrorKind::data, parse("", 10), "x.idx", "0 bytes");
  CHECK_ERROR(ErrorKind::data, parse(with(0, 0), 10), "x.idx", "not an index");
  CHECK_ERROR(ErrorKind::data, parse(with(4, 2), 10), "x.idx", "version 2");
  CHECK_ERROR(ErrorKind::data, parse(with(8, 4), 10), "x.idx", "promises 4");
  CHECK_ERROR(ErrorKind::data, parse(with(15, -1), 10), "x.idx", "promises");
  CHECK_ERROR(ErrorKind::data, parse(good.substr(0, good.size() - 1), 10), "x.idx", "promises 3");
  CHECK_ERROR(ErrorKind::data, parse(index_bytes({}), 10), "x.idx", "no documents");
  CHECK_ERROR(ErrorKind::data, parse(index_bytes({1, 3}), 10), "x.idx", "token 1", "expected 0");
  CHECK_ERROR(ErrorKind::data, parse(index_bytes({0, 5, 4}), 10), "x.idx", "document 2", "byte 1040", "token 4");
  CHECK_ERROR(ErrorKind::data, parse(index_bytes({0, 11}), 10), "x.idx", "document 1", "token 11");
}

TEST_CASE("documents come from the index, a delimiter or the metadata, in this order of what is known") {
  const TemporaryDirectory directory;
  write_shard(directory.path() / "0.bin", {5, 1, 7, 8, 5, 9});
  write_shard(directory.path() / "1.bin", {6, 6, 5, 5, 7});
  const ShardSet bare(directory.path().string() + "/*.bin");
  CHECK(find_documents(bare, {5, false}) == Starts{0, 4, 6, 8, 9, 11});
  CHECK(find_documents(bare, {5, true}) == Starts{0, 1, 5, 6, 9, 10, 11});
  CHECK_ERROR(ErrorKind::data, find_documents(bare, {50, false}), "token 50", "nowhere");
  CHECK_ERROR(ErrorKind::usage, find_documents(bare, {}), "data.document_delimiter", "0.idx");

  write_bytes(directory.path() / "metadata.json", R"({"vocab_size": 10, "eos_id": 5, "bos_id": 1})");
  const ShardSet described(directory.path().string() + "/*.bin");
  CHECK(find_documents(described, {}) == find_documents(bare, {5, false}));
  CHECK(find_documents(described, {-1, true}) == find_documents(bare, {5, true}));
  write_bytes(directory.path() / "0.idx", index_bytes({0, 2}));
  CHECK_ERROR(ErrorKind::data, find_documents(described, {}), "0.idx", "1.bin");
  write_bytes(directory.path() / "1.idx", index_bytes({0}));
  CHECK(find_documents(described, {}) == Starts{0, 2, 6, 11});
  CHECK(find_documents(described, {5, false}) == find_documents(bare, {5, false}));
}

TEST_CASE("an epoch holds every token once, in pieces that lie inside one document") {
  const Corpus corpus;
  const ShardSet shards(corpus.pattern());
  for (const bool packing : {true, false}) {
    const DocumentSampler sampler(shards, {}, settings(packing));
    CHECK(sampler.document_count() == 400);
    std::vector<std::uint64_t> orders[2];
    for (std::uint64_t epoch = 0; epoch < 2; ++epoch) {
      const auto rows = static_cast<std::int64_t>(sampler.sample_count());
      const auto objective = make_causal_lm();
      const Batch batch = make_batch(sampler, *objective, rows, kT, kVocab, epoch * sampler.sample_count());
      CHECK(batch.token_count() == static_cast<std::int64_t>(sampler.token_count()));
      std::vector<int> seen(corpus.starts.back());
      for (std::int64_t b = 0; b < rows; ++b) {
        const std::int64_t length = batch.row_length(b);
        REQUIRE((length >= 1 && length <= kT));
        orders[epoch].push_back(static_cast<std::uint64_t>(batch.input_ids[static_cast<std::size_t>(b * kT)]));
        for (std::int64_t t = 0; t < kT; ++t) {
          const auto at = static_cast<std::size_t>(b * kT + t);
          const std::int32_t token = batch.input_ids[at], label = batch.labels[at];
          std::int64_t begin = 0, end = length;
          if (packing) {
            begin = batch.key_ranges[2 * at];
            end = batch.key_ranges[2 * at + 1];
          }
          if (t >= length) {
            REQUIRE((token == 9 && label == kIgnoredLabel && end == length && (!packing || begin == length)));
            continue;
          }
          REQUIRE((begin <= t && t < end && end <= length));
          ++seen[static_cast<std::size_t>(token)];
          // The piece is a run of tokens of one document that starts at a multiple of T in it, and ends with it or at T.
          const auto first = static_cast<std::uint64_t>(token - (t - begin));
          const auto next = std::upper_bound(corpus.starts.begin(), corpus.starts.end(), first);
          const std::uint64_t piece_end = std::min<std::uint64_t>(*next, first + kT);
          REQUIRE((first - *(next - 1)) % kT == 0);
          REQUIRE(piece_end - first == static_cast<std::uint64_t>(end - begin));
          REQUIRE(label == (t + 1 < end ? token + 1 : kIgnoredLabel));
        }
      }
      CHECK(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
    }
    CHECK(orders[0] != orders[1]);
  }
}

TEST_CASE("packing wastes little, and is a pure function of the seed") {
  const Corpus corpus;
  const ShardSet shards(corpus.pattern());
  const auto all = [&](const DocumentSampler& sampler) {
    const auto objective = make_causal_lm();
    return make_batch(sampler, *objective, static_cast<std::int64_t>(sampler.sample_count()), kT, kVocab, 0).input_ids;
  };
  const DocumentSampler packed(shards, {}, settings(true)), padded(shards, {}, settings(false));
  CHECK(static_cast<double>(packed.token_count()) > 0.97 * static_cast<double>(packed.sample_count() * kT));
  CHECK(padded.sample_count() > packed.sample_count());
  CHECK(all(packed) == all(DocumentSampler(shards, {}, settings(true))));
  CHECK(all(packed) != all(DocumentSampler(shards, {}, settings(true, 4))));

  // One sample alone is what it is in the company of others, and without shuffling every epoch is the first.
  const auto objective = make_masked_lm(0.15, 1, {0, 1, 2}, kVocab, 4);
  const Batch whole = make_batch(packed, *objective, 50, kT, kVocab, 1000);
  const Batch one = make_batch(packed, *objective, 1, kT, kVocab, 1030);
  CHECK(std::equal(one.input_ids.begin(), one.input_ids.end(), whole.input_ids.begin() + 30 * kT));
  CHECK(std::equal(one.labels.begin(), one.labels.end(), whole.labels.begin() + 30 * kT));
  CHECK(std::equal(one.key_ranges.begin(), one.key_ranges.end(), whole.key_ranges.begin() + 60 * kT));
  DocumentSettings fixed = settings(true);
  fixed.shuffle = false;
  const DocumentSampler evaluation(shards, {}, fixed);
  const auto causal = make_causal_lm();
  CHECK(make_batch(evaluation, *causal, 9, kT, kVocab, 0).input_ids ==
        make_batch(evaluation, *causal, 9, kT, kVocab, evaluation.sample_count()).input_ids);
}

TEST_CASE("documents that fill their rows exactly leave nothing to pack; a bad token is named") {
  const TemporaryDirectory directory;
  const std::string path = write_shard(directory.path() / "0.bin", counting_tokens(32));
  write_bytes(directory.path() / "0.idx", index_bytes({0, 16}));
  const ShardSet shards(path);
  const DocumentSampler sampler(shards, {}, settings(true));
  CHECK(sampler.sample_count() == 2);
  CHECK(sampler.token_count() == 32);
  const auto objective = make_causal_lm();
  CHECK_ERROR(ErrorKind::data, make_batch(sampler, *objective, 2, kT, 20, 0), path, "token 20", "position 20");
  CHECK_ERROR(ErrorKind::usage, DocumentSampler(shards, {}, {}), "0 tokens");
}
