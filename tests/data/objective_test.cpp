// Masked and causal language modelling: the statistics of the choice, and what it may depend on.
#include "data/objective.h"

#include <algorithm>
#include <cmath>

#include "kernels/random.h"
#include "tests/data/data_support.h"

using namespace outeffhop;
using namespace outeffhop::test;

namespace {

constexpr std::int32_t kMask = 103;
constexpr std::int64_t kVocab = 30522;
const std::vector<std::int32_t> kSpecial = {0, 100, 101, 102, 103};

Batch batch_of(std::int64_t B, std::int64_t T, std::uint64_t first_sample, std::int32_t token) {
  Batch batch;
  batch.B = B;
  batch.T = T;
  batch.input_ids.assign(static_cast<std::size_t>(B * T), token);
  for (std::int64_t b = 0; b < B; ++b) batch.sample_ids.push_back(first_sample + static_cast<std::uint64_t>(b));
  return batch;
}

/// Within five standard deviations of a binomial count: a right program fails once in 1.7 million seeds, and the seed is
/// fixed.
void check_share(const char* what, double count, double trials, double probability) {
  INFO(what << ": " << count << " of " << trials << ", expected a share of " << probability);
  CHECK(std::abs(count - trials * probability) <= 5.0 * std::sqrt(trials * probability * (1.0 - probability)));
}

}  // namespace

TEST_CASE("15 % are chosen; 80 % of them masked, 10 % random, 10 % kept") {
  constexpr std::int32_t kToken = 2000;
  const auto objective = make_masked_lm(0.15, kMask, kSpecial, kVocab, 11);
  Batch batch = batch_of(1024, 512, 0, kToken);
  objective->apply(batch);
  const auto trials = static_cast<double>(batch.input_ids.size());
  double chosen = 0, masked = 0, random = 0, kept = 0, random_low_half = 0, random_special = 0;
  std::vector<double> chosen_at(512);
  for (std::size_t i = 0; i < batch.input_ids.size(); ++i) {
    const std::int32_t token = batch.input_ids[i];
    if (batch.labels[i] == kIgnoredLabel) {
      REQUIRE(token == kToken);
      continue;
    }
    REQUIRE(batch.labels[i] == kToken);
    REQUIRE((token >= 0 && token < kVocab));
    ++chosen;
    ++chosen_at[i % 512];
    if (token == kMask) {
      ++masked;
    } else if (token == kToken) {
      ++kept;
    } else {
      ++random;
      random_low_half += token < kVocab / 2;
      random_special += std::count(kSpecial.begin(), kSpecial.end(), token) > 0;
    }
  }
  check_share("chosen", chosen, trials, 0.15);
  // A random replacement may hit the mask or the token itself, once in 30522 each: added to the shares.
  check_share("masked", masked, chosen, 0.8 + 0.1 / kVocab);
  check_share("random", random, chosen, 0.1 - 0.2 / kVocab);
  check_share("kept", kept, chosen, 0.1 + 0.1 / kVocab);
  check_share("random ids in the lower half", random_low_half, random, 0.5);
  CHECK(random_special < 20);  // expected 1: the whole vocabulary includes the special ids
  for (std::size_t t = 0; t < 512; ++t) {
    INFO("position " << t);
    check_share("chosen at one position", chosen_at[t], 1024, 0.15);
  }
}

TEST_CASE("random replacements reach every id, the special ones too") {
  const auto objective = make_masked_lm(1.0, 2, {0}, 8, 3);
  Batch batch = batch_of(64, 512, 0, 5);
  objective->apply(batch);
  std::vector<double> counts(8);
  for (const std::int32_t token : batch.input_ids) ++counts[static_cast<std::size_t>(token)];
  const double trials = 64 * 512;
  for (std::size_t id = 0; id < 8; ++id) {
    INFO("id " << id);
    check_share("id", counts[id], trials, 0.1 / 8 + (id == 2 ? 0.8 : id == 5 ? 0.1 : 0.0));
  }
}

TEST_CASE("special ids and the mask itself are never chosen") {
  const auto objective = make_masked_lm(1.0, kMask, {0, 101, 102}, kVocab, 1);
  for (const std::int32_t special : {0, 101, 102, kMask}) {
    Batch batch = batch_of(4, 64, 0, special);
    objective->apply(batch);
    CHECK(std::all_of(batch.input_ids.begin(), batch.input_ids.end(), [&](auto id) { return id == special; }));
    CHECK(std::all_of(batch.labels.begin(), batch.labels.end(), [](auto label) { return label == kIgnoredLabel; }));
  }
  Batch ordinary = batch_of(4, 64, 0, 100);  // not listed as special here
  objective->apply(ordinary);
  CHECK(std::all_of(ordinary.labels.begin(), ordinary.labels.end(), [](auto label) { return label == 100; }));
}

TEST_CASE("the choice is a pure function of seed, sample and position") {
  const auto objective = make_masked_lm(0.15, kMask, kSpecial, kVocab, 11);
  Batch whole = batch_of(8, 128, 1000, 2000);
  objective->apply(whole);
  // The same samples one at a time, shorter, by another object, in the company of other tokens.
  const auto again = make_masked_lm(0.15, kMask, kSpecial, kVocab, 11);
  for (std::int64_t b = 0; b < 8; ++b) {
    Batch one = batch_of(1, 100, 1000 + static_cast<std::uint64_t>(b), 2000);
    one.input_ids[99] = 102;
    again->apply(one);
    for (std::size_t t = 0; t < 99; ++t) {
      REQUIRE(one.input_ids[t] == whole.input_ids[static_cast<std::size_t>(b) * 128 + t]);
      REQUIRE(one.labels[t] == whole.labels[static_cast<std::size_t>(b) * 128 + t]);
    }
  }
  // Evaluation: the same samples again are masked the same.
  Batch repeated = batch_of(8, 128, 1000, 2000);
  objective->apply(repeated);
  CHECK(repeated.input_ids == whole.input_ids);
  CHECK(repeated.labels == whole.labels);

  Batch other_seed = batch_of(8, 128, 1000, 2000);
  make_masked_lm(0.15, kMask, kSpecial, kVocab, 12)->apply(other_seed);
  CHECK(other_seed.labels != whole.labels);
}

TEST_CASE("one window is masked anew in every epoch") {
  const auto objective = make_masked_lm(0.15, kMask, kSpecial, kVocab, 11);
  std::vector<std::vector<std::int32_t>> labels;
  for (std::uint64_t epoch = 0; epoch < 50; ++epoch) {
    Batch batch = batch_of(1, 128, 17 + epoch * 1000, 2000);
    objective->apply(batch);
    labels.push_back(batch.labels);
  }
  Batch high_word = batch_of(1, 128, 17 + (std::uint64_t{1} << 32), 2000);
  objective->apply(high_word);
  labels.push_back(high_word.labels);
  std::sort(labels.begin(), labels.end());
  CHECK(std::adjacent_find(labels.begin(), labels.end()) == labels.end());
}

TEST_CASE("the draw of a masked position is frozen") {
  const auto objective = make_masked_lm(0.15, kMask, kSpecial, kVocab, 11);
  Batch batch = batch_of(16, 64, 77, 2000);
  objective->apply(batch);
  const PhiloxKey key = stream_key(11, kStreamMasking);
  for (std::uint32_t b = 0; b < 16; ++b) {
    for (std::uint32_t t = 0; t < 64; ++t) {
      const PhiloxBlock draw = philox(key, 0, t, 77 + b, 0);
      const bool chosen = uniform53(draw.w[0], draw.w[1]) < 0.15;
      REQUIRE((batch.labels[b * 64 + t] != kIgnoredLabel) == chosen);
      if (!chosen) continue;
      const double action = draw.w[2] / 4294967296.0;
      const double random = std::floor(draw.w[3] / 4294967296.0 * kVocab);
      REQUIRE(batch.input_ids[b * 64 + t] == (action < 0.8   ? kMask
                                              : action < 0.9 ? static_cast<std::int32_t>(random)
                                                             : 2000));
    }
  }
}

TEST_CASE("padding is neither masked nor predicted") {
  Batch batch = batch_of(2, 16, 0, 7);
  batch.key_lengths = {16, 5};
  Batch causal = batch;
  make_masked_lm(1.0, 1, {}, 100, 0)->apply(batch);
  for (std::size_t t = 0; t < 16; ++t) {
    CHECK(batch.labels[t] == 7);
    CHECK(batch.labels[16 + t] == (t < 5 ? 7 : kIgnoredLabel));
    if (t >= 5) CHECK(batch.input_ids[16 + t] == 7);
  }
  make_causal_lm()->apply(causal);
  CHECK(causal.labels[14] == 7);
  CHECK(causal.labels[15] == kIgnoredLabel);
  CHECK(causal.labels[16 + 3] == 7);
  for (std::size_t t = 4; t < 16; ++t) CHECK(causal.labels[16 + t] == kIgnoredLabel);
}

TEST_CASE("causal labels are the next token of the window") {
  Batch batch = batch_of(2, 4, 0, 0);
  batch.input_ids = {1, 2, 3, 4, 5, 6, 7, 8};
  make_causal_lm()->apply(batch);
  CHECK(batch.input_ids == std::vector<std::int32_t>{1, 2, 3, 4, 5, 6, 7, 8});
  CHECK(batch.labels == std::vector<std::int32_t>{2, 3, 4, kIgnoredLabel, 6, 7, 8, kIgnoredLabel});
  Batch single = batch_of(2, 1, 0, 9);
  make_causal_lm()->apply(single);
  CHECK(single.labels == std::vector<std::int32_t>{kIgnoredLabel, kIgnoredLabel});
}

TEST_CASE("impossible objectives are refused") {
  CHECK_ERROR(ErrorKind::usage, make_masked_lm(0.0, 1, {}, 10, 0), "probability of 0");
  CHECK_ERROR(ErrorKind::usage, make_masked_lm(1.5, 1, {}, 10, 0), "probability of 1.5");
  CHECK_ERROR(ErrorKind::usage, make_masked_lm(std::nan(""), 1, {}, 10, 0), "probability of nan");
  CHECK_ERROR(ErrorKind::usage, make_masked_lm(0.1, 10, {}, 10, 0), "mask id 10", "0 to 9");
  CHECK_ERROR(ErrorKind::usage, make_masked_lm(0.1, -1, {}, 10, 0), "mask id -1");
  CHECK_ERROR(ErrorKind::usage, make_masked_lm(0.1, 1, {3, 12}, 10, 0), "special id 12");
  CHECK_ERROR(ErrorKind::usage, make_masked_lm(0.1, 0, {}, 0, 0), "vocabulary of 0");
}
