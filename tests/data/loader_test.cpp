// Prefetched batches are the batches made on the spot, from any start and in any batch size.
#include "data/loader.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/data/data_support.h"

using namespace outeffhop;
using namespace outeffhop::test;

namespace {

bool same(const Batch& a, const Batch& b) {
  return a.B == b.B && a.T == b.T && a.input_ids == b.input_ids && a.labels == b.labels && a.key_lengths == b.key_lengths &&
         a.key_ranges == b.key_ranges && a.sample_ids == b.sample_ids;
}

Batch next_of(Loader& loader) {
  Batch batch;
  loader.next(batch);
  return batch;
}

struct Corpus {
  Corpus() {
    write_shard(directory.path() / "0.bin", counting_tokens(16 * 20 + 5));
    write_shard(directory.path() / "1.bin", counting_tokens(16 * 17, 500));
  }
  TemporaryDirectory directory;
};

/// Counts the batches it sees and fails on one sample.
class FailingObjective final : public Objective {
 public:
  explicit FailingObjective(std::uint64_t bad_sample) : bad_sample_(bad_sample) {}
  void apply(Batch& batch) const override {
    ++applied;
    for (const std::uint64_t sample : batch.sample_ids) {
      if (sample == bad_sample_) fail(ErrorKind::data, "sample {} is bad", sample);
    }
    batch.labels = batch.input_ids;
  }
  mutable std::atomic<int> applied = 0;

 private:
  std::uint64_t bad_sample_;
};

constexpr std::uint64_t kNoSample = ~std::uint64_t{0};

}  // namespace

TEST_CASE("the loader returns what make_batch makes, over several epochs") {
  const Corpus corpus;
  const ShardSet shards(corpus.directory.path().string() + "/*.bin");
  const StreamSampler sampler(shards, 16, 3, true);
  REQUIRE(sampler.sample_count() == 37);
  const auto objective = make_masked_lm(0.15, 1, {0, 1, 2}, 1000, 4);
  for (const std::size_t depth : {0u, 1u, 4u}) {
    Loader loader(sampler, *objective, 5, 16, 1000, 11, depth);
    for (std::uint64_t i = 0; i < 30; ++i) {
      INFO("depth " << depth << " batch " << i);
      REQUIRE(same(next_of(loader), make_batch(sampler, *objective, 5, 16, 1000, 11 + 5 * i)));
    }
  }
}

TEST_CASE("samples do not depend on batch size or on where a run starts") {
  const Corpus corpus;
  const ShardSet shards(corpus.directory.path().string() + "/*.bin");
  const StreamSampler sampler(shards, 16, 3, true);
  const auto objective = make_masked_lm(0.15, 1, {0, 1, 2}, 1000, 4);
  const Batch whole = make_batch(sampler, *objective, 120, 16, 1000, 0);
  for (const std::int64_t B : {1, 7, 8}) {
    for (const std::uint64_t start : {0u, 1u, 36u, 50u}) {
      Loader loader(sampler, *objective, B, 16, 1000, start);
      for (std::uint64_t i = 0; i < 8; ++i) {
        const Batch batch = next_of(loader);
        for (std::int64_t b = 0; b < B; ++b) {
          const auto sample = static_cast<std::ptrdiff_t>(batch.sample_ids[static_cast<std::size_t>(b)]);
          REQUIRE(sample == static_cast<std::ptrdiff_t>(start + i * static_cast<std::uint64_t>(B)) + b);
          REQUIRE(std::equal(batch.input_ids.begin() + b * 16, batch.input_ids.begin() + (b + 1) * 16,
                             whole.input_ids.begin() + sample * 16));
          REQUIRE(std::equal(batch.labels.begin() + b * 16, batch.labels.begin() + (b + 1) * 16,
                             whole.labels.begin() + sample * 16));
        }
      }
    }
  }
}

TEST_CASE("no two epochs show the model the same inputs") {
  const Corpus corpus;
  const ShardSet shards(corpus.directory.path().string() + "/*.bin");
  const StreamSampler sampler(shards, 16, 3, true);
  const auto objective = make_masked_lm(0.15, 1, {0, 1, 2}, 1000, 4);
  const Batch first = make_batch(sampler, *objective, 37, 16, 1000, 0);
  const Batch second = make_batch(sampler, *objective, 37, 16, 1000, 37);
  CHECK(first.input_ids != second.input_ids);
  // Evaluation reads in order with fixed sample ids, so it is the same whenever it runs.
  const StreamSampler ordered(shards, 16, 3, false);
  CHECK(same(make_batch(ordered, *objective, 37, 16, 1000, 0), make_batch(ordered, *objective, 37, 16, 1000, 0)));
}

TEST_CASE("an error is thrown by the next() whose batch it spoiled, and from then on") {
  const Corpus corpus;
  const ShardSet shards(corpus.directory.path().string() + "/*.bin");
  const StreamSampler sampler(shards, 16, 3, false);
  const FailingObjective objective(14);
  Loader loader(sampler, objective, 4, 16, 1000, 0);
  for (std::uint64_t i = 0; i < 3; ++i) CHECK(next_of(loader).sample_ids.front() == 4 * i);
  CHECK_ERROR(ErrorKind::data, next_of(loader), "sample 14 is bad");
  CHECK_ERROR(ErrorKind::data, next_of(loader), "sample 14 is bad");
}

TEST_CASE("a damaged token stops the loader with the shard's name") {
  const TemporaryDirectory directory;
  std::vector<std::uint16_t> tokens = counting_tokens(64);
  tokens[50] = 5000;
  const std::string path = write_shard(directory.path() / "0.bin", tokens);
  const ShardSet shards(path);
  const StreamSampler sampler(shards, 16, 3, false);
  const auto objective = make_causal_lm();
  Loader loader(sampler, *objective, 1, 16, 1000, 0);
  for (int i = 0; i < 3; ++i) next_of(loader);
  CHECK_ERROR(ErrorKind::data, next_of(loader), path, "5000", "position 50");
}

TEST_CASE("the loader runs ahead by its depth and no further, and stops when it goes") {
  const Corpus corpus;
  const ShardSet shards(corpus.directory.path().string() + "/*.bin");
  const StreamSampler sampler(shards, 16, 3, false);
  const FailingObjective objective(kNoSample);
  {
    Loader loader(sampler, objective, 4, 16, 1000, 0, 3);
    next_of(loader);
    // One taken, three waiting, one made and waiting for room.
    for (int wait = 0; objective.applied < 5 && wait < 20000; ++wait)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    CHECK(objective.applied == 5);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(objective.applied == 5);
  }
  // Destruction at any moment: before the first batch, or with a full queue.
  for (int i = 0; i < 200; ++i) {
    Loader loader(sampler, objective, 4, 16, 1000, 0, 1);
    if (i % 2) next_of(loader);
  }
}

TEST_CASE("a batch that held something else holds nothing of it after it was filled again") {
  const Corpus corpus;
  const ShardSet shards(corpus.directory.path().string() + "/*.bin");
  const StreamSampler sampler(shards, 16, 3, true);
  const auto objective = make_masked_lm(0.15, 1, {0, 1, 2}, 1000, 4);
  const auto stale = [] {
    Batch batch;
    batch.B = 9;
    batch.T = 20;
    for (auto* values : {&batch.input_ids, &batch.labels, &batch.key_lengths, &batch.key_ranges}) values->assign(400, 7);
    batch.sample_ids.assign(9, 7);
    return batch;
  };
  Batch batch = stale();
  make_batch(sampler, *objective, 5, 16, 1000, 11, batch);
  CHECK(same(batch, make_batch(sampler, *objective, 5, 16, 1000, 11)));
  // The loader gets its memory from whoever takes its batches.
  Loader loader(sampler, *objective, 5, 16, 1000, 0, 2);
  for (std::uint64_t i = 0; i < 20; ++i) {
    Batch taken = stale();
    loader.next(taken);
    REQUIRE(same(taken, make_batch(sampler, *objective, 5, 16, 1000, 5 * i)));
  }
}

TEST_CASE("a batch whose length is not the sampler's is a bug") {
  const Corpus corpus;
  const ShardSet shards(corpus.directory.path().string() + "/*.bin");
  const StreamSampler sampler(shards, 16, 3, false);
  const auto objective = make_causal_lm();
  CHECK_ERROR(ErrorKind::internal, make_batch(sampler, *objective, 1, 8, 1000, 0), "(1, 8)", "16");
  CHECK_ERROR(ErrorKind::internal, make_batch(sampler, *objective, 0, 16, 1000, 0), "(0, 16)");
}
