// Batches in host memory, as the loader makes them.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

namespace outeffhop {

/// A label that is not there (Hugging Face's convention).
constexpr std::int32_t kIgnoredLabel = -100;

struct Batch {
  std::int64_t B = 0, T = 0;
  std::vector<std::int32_t> input_ids;    ///< (B, T)
  std::vector<std::int32_t> labels;       ///< (B, T) aligned with the position whose output predicts them, or kIgnoredLabel
  std::vector<std::int32_t> key_lengths;  ///< (B), or empty when nothing is padded
  /// (B, T, 2), or empty when each row is one sequence: the half-open range of positions of row b that the document at
  /// position t takes. Padding has the empty range (length, length), where length is the row's key_lengths.
  std::vector<std::int32_t> key_ranges;
  std::vector<std::uint64_t> sample_ids;  ///< (B) global sample indices

  /// Positions of row b that hold text: the padding is on the right.
  std::int64_t row_length(std::int64_t b) const {
    return key_lengths.empty() ? T : key_lengths[static_cast<std::size_t>(b)];
  }
  /// Tokens, padding left out.
  std::int64_t token_count() const {
    return key_lengths.empty() ? B * T : std::accumulate(key_lengths.begin(), key_lengths.end(), std::int64_t{0});
  }
};

}  // namespace outeffhop
