// What a model is asked to predict: an interface, so that a new objective is a new class.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/batch.h"

namespace outeffhop {

class Objective {
 public:
  virtual ~Objective() = default;
  /// Turns the clean tokens of batch.input_ids into inputs and labels. Depends only on tokens and sample ids.
  virtual void apply(Batch& batch) const = 0;
};

/// Masked language modelling (Devlin et al. 2019): each non-special token is chosen with `probability`; of the chosen 80 %
/// become `mask_id`, 10 % a random id of the whole vocabulary, 10 % stay. The choice is a pure function of (seed, sample
/// index, position), so it never repeats in training, where the sample index runs on across epochs, and is fixed in
/// evaluation. `mask_id` counts as special whether listed or not; padding (key_lengths) is never chosen. Throws Error(usage)
/// for a probability outside (0, 1] or an id outside the vocabulary. FROZEN: position t of sample k draws block
/// sample_block(stream_key(seed, kStreamMasking), k, t, 0). It is chosen when uniform53(word 0, word 1) < probability; word
/// 2 / 2^32 < 0.8 masks, < 0.9 replaces by floor(word 3 * vocab / 2^32).
std::unique_ptr<Objective> make_masked_lm(double probability, std::int32_t mask_id, std::vector<std::int32_t> special_ids,
                                          std::int64_t vocab_size, std::uint64_t seed);

/// Next-token prediction inside each document of a row: labels[t] = input_ids[t + 1], none at its last position.
std::unique_ptr<Objective> make_causal_lm();

}  // namespace outeffhop
