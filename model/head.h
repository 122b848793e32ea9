// The language-model head: from the hidden states of the labelled positions to their cross-entropies, and back.
#pragma once

#include <optional>
#include <string>

#include "model/pass.h"

namespace outeffhop {

/// hidden (C) -> [projection (E)] -> [activation] -> [layer norm] -> logits = h decoder^T + decoder_bias (V).
/// BERT has all of it; OPT has a projection (project_out) only where its embeddings are narrower than C.
///
/// The vocabulary is the widest dimension of the model, so only labelled rows come here, gathered, and a chunk at a time:
/// logits never take more than a planned number of rows. Labels come padded to whole buckets, and chunks are whole buckets of
/// them, so that the shapes of all ops repeat from batch to batch; the padding rows get no loss and no gradient. No label is
/// dropped.
class Head {
 public:
  static constexpr std::int64_t kBucket = 64;        ///< rows
  static constexpr std::int64_t kProductRows = 512;  ///< rows that large products take without a remainder
  static constexpr std::int64_t kRowElements = 64;   ///< rows of logits begin at multiples of this

  std::int64_t C = 0, E = 0, V = 0;
  std::optional<LinearLayer> projection;  ///< (E, C)
  Activation activation = Activation::none;
  std::optional<LinearLayer> norm;  ///< weight (E) and bias (E) of the layer norm
  double epsilon = 0.0;
  LinearLayer decoder;  ///< weight (V, E), tied to the word embeddings; bias (V) or null
  std::size_t projection_site = 0, activation_site = 0, norm_site = 0, logits_site = 0;

  /// Entries that `count` labels take in a batch's label arrays, and rows in a d_rows tensor.
  static std::int64_t padded_rows(std::int64_t count) { return (count + kBucket - 1) / kBucket * kBucket; }

  /// Logits of a chunk take at most `logit_bytes`, or one bucket.
  void plan(Arena& workspace, const Capacity& capacity, std::int64_t logit_bytes);

  /// Adds the cross-entropies of pass.batch's labels to *loss_sum. hidden (B, T, C).
  void forward(const Pass& pass, ConstTensor hidden, double* loss_sum) const;

  /// As forward, and accumulates the gradients of the parameters. d_rows (padded_rows(N), C): row i is the gradient of the
  /// hidden state at label_rows[i], and 0 where that is padding.
  void forward_backward(const Pass& pass, ConstTensor hidden, double* loss_sum, Tensor d_rows) const;

  /// The logits of every position, (B, T, V), unrounded, to host memory. hidden (B, T, C).
  void all_logits(const Pass& pass, ConstTensor hidden, void* host_out) const;

 private:
  /// A chunk of the padded labels: [begin, begin + rows), of which the first `labels` are none of the padding.
  struct Chunk {
    std::int64_t begin = 0, rows = 0, labels = 0;
  };
  Chunk chunk_at(std::int64_t begin, std::int64_t label_count) const;  ///< without rows at the end
  ConstTensor gather(const Pass& pass, ConstTensor hidden, const Chunk& chunk) const;
  ConstTensor transform(const Pass& pass, ConstTensor rows, const Chunk& chunk) const;
  void decode(const Pass& pass, ConstTensor transformed, std::int64_t rows, Tensor logits, std::int64_t stride) const;
  void cross_entropy(const Pass& pass, const Chunk& chunk, std::int64_t stride, double* loss_sum, bool write_gradient) const;
  void chunk_backward(const Pass& pass, ConstTensor gathered, ConstTensor transformed, const Chunk& chunk,
                      Tensor d_rows) const;
  void show(const Pass& pass, std::size_t site, Tensor data, std::int64_t channels, const Chunk& chunk) const;

  /// Products are fast where the rows of all matrices begin at multiples of 16 bytes, which those of V elements may not.
  std::int64_t logit_stride() const { return (V + kRowElements - 1) / kRowElements * kRowElements; }

  std::int64_t chunk_rows_ = 0;  ///< of the storage dtype's logits
  Tensor gathered_;              ///< (chunk, C)
  Tensor pre_, post_;            ///< (chunk, E) around the activation; post_ is the projection's output
  Tensor normed_;                ///< (chunk, E)
  Tensor mean_, rstd_;           ///< (chunk)
  Tensor logits_;                ///< (chunk, V), a row every logit_stride(), then their gradient
  Tensor d_transformed_;         ///< (chunk, E)
};

}  // namespace outeffhop
