#include "train/flops.h"

#include <algorithm>

namespace outeffhop {
namespace {

/// Keys that the query at position t of row b sees.
std::int64_t visible_keys(const Batch& batch, bool causal, std::int64_t b, std::int64_t t) {
  std::int64_t begin = 0, end = batch.row_length(b);
  if (!batch.key_ranges.empty()) {
    const auto range = static_cast<std::size_t>(2 * (b * batch.T + t));
    begin = batch.key_ranges[range];
    end = batch.key_ranges[range + 1];
  }
  if (causal) end = std::min(end, t + 1);
  return std::max<std::int64_t>(0, end - begin);
}

}  // namespace

PassWork& PassWork::operator+=(const PassWork& other) {
  rows += other.rows;
  labels += other.labels;
  pairs += other.pairs;
  return *this;
}

PassWork count_work(const Batch& batch, bool causal) {
  PassWork work;
  work.rows = static_cast<double>(batch.B * batch.T);
  work.labels = static_cast<double>(
      std::count_if(batch.labels.begin(), batch.labels.end(), [](std::int32_t label) { return label != kIgnoredLabel; }));
  for (std::int64_t b = 0; b < batch.B; ++b) {
    for (std::int64_t t = 0; t < batch.T; ++t) work.pairs += static_cast<double>(visible_keys(batch, causal, b, t));
  }
  return work;
}

double training_flops(const ModelConfig& config, const PassWork& work) {
  const auto C = static_cast<double>(config.hidden_size), F = static_cast<double>(config.intermediate_size),
             L = static_cast<double>(config.num_hidden_layers), E = static_cast<double>(config.embedding_size()),
             V = static_cast<double>(config.vocab_size);
  const bool projected = config.embedding_size() != config.hidden_size;  // OPT alone
  const double row_weights = L * (4 * C * C + 2 * C * F) + (projected ? E * C : 0.0);
  const double label_weights = E * V + (config.model_type == "bert" ? C * C : projected ? E * C : 0.0);
  return 3 * (2 * (work.rows * row_weights + work.labels * label_weights) + 4 * L * C * work.pairs);
}

double recomputed_flops(const ModelConfig& config, const PassWork& work) {
  const auto C = static_cast<double>(config.hidden_size), F = static_cast<double>(config.intermediate_size),
             L = static_cast<double>(config.num_hidden_layers);
  return (L - 1) * (2 * work.rows * (4 * C * C + C * F) + 4 * C * work.pairs);
}

}  // namespace outeffhop
