// Inputs and labels from clean tokens.
#include "data/objective.h"

#include "kernels/error.h"
#include "kernels/random.h"

namespace outeffhop {
namespace {

void check_shape(const Batch& batch) {
  const auto B = static_cast<std::size_t>(batch.B), T = static_cast<std::size_t>(batch.T);
  require(batch.input_ids.size() == B * T && batch.sample_ids.size() == B &&
              (batch.key_lengths.empty() || batch.key_lengths.size() == B) &&
              (batch.key_ranges.empty() || batch.key_ranges.size() == B * T * 2),
          "a batch of shape ({}, {}) with {} tokens, {} sample ids, {} key lengths and {} ends of key ranges", B, T,
          batch.input_ids.size(), batch.sample_ids.size(), batch.key_lengths.size(), batch.key_ranges.size());
}

class MaskedLm final : public Objective {
 public:
  MaskedLm(double probability, std::int32_t mask_id, const std::vector<std::int32_t>& special_ids, std::int64_t vocab_size,
           std::uint64_t seed)
      : probability_(probability), mask_id_(mask_id), vocab_size_(vocab_size), key_(stream_key(seed, kStreamMasking)) {
    if (!(probability > 0.0 && probability <= 1.0)) {
      fail(ErrorKind::usage, "a masking probability of {} was asked for, expected more than 0 and at most 1", probability);
    }
    if (vocab_size < 1 || vocab_size > std::int64_t{1} << 31) {
      fail(ErrorKind::usage, "masked language modelling over a vocabulary of {} ids, expected 1 to 2^31", vocab_size);
    }
    special_.assign(static_cast<std::size_t>(vocab_size), false);
    mark_special(mask_id, "mask id");
    for (const std::int32_t id : special_ids) mark_special(id, "special id");
  }

  void apply(Batch& batch) const override {
    check_shape(batch);
    batch.labels.assign(batch.input_ids.size(), kIgnoredLabel);
    for (std::int64_t b = 0; b < batch.B; ++b) {
      const std::uint64_t sample = batch.sample_ids[static_cast<std::size_t>(b)];
      const std::int64_t length = batch.row_length(b);
      for (std::int64_t t = 0; t < length; ++t) {
        const auto at = static_cast<std::size_t>(b * batch.T + t);
        apply_at(sample, static_cast<std::uint32_t>(t), batch.input_ids[at], batch.labels[at]);
      }
    }
  }

 private:
  void mark_special(std::int32_t id, const char* name) {
    if (id < 0 || id >= vocab_size_) {
      fail(ErrorKind::usage, "masked language modelling got {} {}, expected 0 to {} for a vocabulary of {} ids", name, id,
           vocab_size_ - 1, vocab_size_);
    }
    special_[static_cast<std::size_t>(id)] = true;
  }

  void apply_at(std::uint64_t sample, std::uint32_t t, std::int32_t& token, std::int32_t& label) const {
    require(token >= 0 && token < vocab_size_, "token {} of sample {} masked with a vocabulary of {}", token, sample,
            vocab_size_);
    if (special_[static_cast<std::size_t>(token)]) return;
    const PhiloxBlock draw = sample_block(key_, sample, t, 0);
    if (uniform53(draw.w[0], draw.w[1]) >= probability_) return;
    label = token;
    const double action = draw.w[2] * 0x1.0p-32;
    if (action < 0.8) {
      token = mask_id_;
    } else if (action < 0.9) {
      token = static_cast<std::int32_t>((std::uint64_t{draw.w[3]} * static_cast<std::uint64_t>(vocab_size_)) >> 32);
    }
  }

  double probability_;
  std::int32_t mask_id_;
  std::int64_t vocab_size_;
  PhiloxKey key_;
  std::vector<bool> special_;
};

class CausalLm final : public Objective {
 public:
  void apply(Batch& batch) const override {
    check_shape(batch);
    batch.labels.assign(batch.input_ids.size(), kIgnoredLabel);
    for (std::int64_t b = 0; b < batch.B; ++b) {
      const auto row = static_cast<std::size_t>(b * batch.T);
      const auto length = static_cast<std::size_t>(batch.row_length(b));
      for (std::size_t t = 0; t < length; ++t) {
        const std::size_t end =
            batch.key_ranges.empty() ? length : static_cast<std::size_t>(batch.key_ranges[2 * (row + t) + 1]);
        if (t + 1 < end) batch.labels[row + t] = batch.input_ids[row + t + 1];
      }
    }
  }
};

}  // namespace

std::unique_ptr<Objective> make_masked_lm(double probability, std::int32_t mask_id, std::vector<std::int32_t> special_ids,
                                          std::int64_t vocab_size, std::uint64_t seed) {
  return std::make_unique<MaskedLm>(probability, mask_id, special_ids, vocab_size, seed);
}

std::unique_ptr<Objective> make_causal_lm() { return std::make_unique<CausalLm>(); }

}  // namespace outeffhop
