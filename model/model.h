// A language model on a device: parameters, gradients and activations in arenas planned up front, forward and backward
// written once against the op contracts (kernels/*.h). It knows no backend.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "model/config.h"
#include "model/parameters.h"

namespace outeffhop {

/// One micro-batch in device memory. BERT and OPT differ only in who made the labels (data/objective).
///
/// Which ops a model runs, and of what sizes, depends on B, T, on which pointers are null, and on M = Head::padded_rows(N): N
/// rounded up to whole buckets. The labels of two batches of one M differ in the arrays alone.
struct ModelBatch {
  std::int64_t B = 0, T = 0;
  const std::int32_t* input_ids = nullptr;     ///< (B, T)
  const std::int32_t* position_ids = nullptr;  ///< (B, T) rows of the position table, offset included
  const std::int32_t* type_ids = nullptr;      ///< (B, T) or null for 0
  const std::int32_t* key_lengths = nullptr;   ///< (B) or null when nothing is padded
  const std::int32_t* key_ranges = nullptr;    ///< (B, T, 2) or null when no row of the batch packs several sequences
  const std::uint64_t* sample_ids = nullptr;   ///< (B) global sample indices: what dropout depends on
  std::int64_t label_count = 0;                ///< labelled positions N
  const std::int32_t* label_rows = nullptr;    ///< (M) row b T + t of each labelled position, then -1
  const std::int32_t* label_ids = nullptr;     ///< (M) the token to predict there, then -1
};

/// A place where the model can be observed and changed, by Hugging Face module name.
struct Site {
  std::string name;       ///< e.g. "bert.encoder.layer.3.output.dense"
  enum class Kind : std::uint8_t {
    embedding_sum,        ///< input of the embedding layer norm (BERT), or what enters the first layer (OPT)
    projection,           ///< output of a linear layer: query, key, value, dense, fc1 ... before activation, dropout, residual
    activation,           ///< output of the activation function
    context,              ///< merged heads: attention output before the output projection
    scores,               ///< scale q.k before masks, a block of rows at a time
    probabilities,        ///< p after the softmax, a block of rows at a time
    residual_sum,         ///< input of a post-LN layer norm; residual stream of a pre-LN layer (the layer's output)
    layernorm,            ///< output of a layer norm
    logits,               ///< of the labelled rows
  } kind = Kind::projection;
  std::int64_t layer = -1;  ///< -1: outside the layers
};

/// What a visitor is shown at a site. `data` may be changed in place (fake quantisation): the forward goes on with it.
struct SiteValue {
  Tensor data;
  std::int64_t samples = 0;         ///< B (attention blocks: B; head: 1)
  std::int64_t rows_per_sample = 0; ///< T (attention blocks: heads x query rows of the block; head: labelled rows of the chunk)
  std::int64_t channels = 0;        ///< values a row
  std::int64_t row_begin = 0;       ///< attention blocks: first query row; head: first label of the chunk; otherwise 0
};

class SiteVisitor {
 public:
  virtual ~SiteVisitor() = default;
  /// False lets the model keep the fused form of sites nobody looks at (scores, probabilities above all).
  virtual bool wants(const Site& site) const = 0;
  virtual void visit(const Site& site, const SiteValue& value) = 0;
};

/// Bytes of each arena, for --dry-run and logs.
struct MemoryPlan {
  std::size_t master_weights = 0, storage_weights = 0, gradients = 0, activations = 0, workspace = 0;
};

/// Which activations a layer does not keep until its backward, but makes again then. The gradients are the same to the bit.
enum class Recompute : std::uint8_t {
  none,
  cheap,  ///< what an elementwise op makes from another activation: outputs of layer norms and of the MLP's activation
  block,  ///< all but the layer's input: most of its forward runs twice
};

struct ModelOptions {
  DType dtype = DType::f32;       ///< storage of parameters and activations: f32, bf16 (f64 on the reference device)
  std::int64_t max_batch = 1;     ///< largest micro-batch B
  std::int64_t max_sequence = 1;  ///< largest T
  bool training = true;           ///< false: no gradients, activations of one layer only
  std::uint64_t seed = 0;         ///< keys dropout
  Recompute recompute = Recompute::none;
};

class Model {
 public:
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const ParameterTable& parameters() const = 0;
  /// Every site, in forward order. Dropout sites are numbered in the same order.
  virtual const std::vector<Site>& sites() const = 0;
  virtual MemoryPlan memory() const = 0;

  /// Flat arrays of parameters().flat_size() elements in device memory. `master` is fp32 (f64 on the reference device); the
  /// model reads `storage`, which is `master` itself unless the dtype is bf16. After changing master call round_to_storage().
  virtual Tensor master() = 0;
  virtual Tensor storage() = 0;
  virtual Tensor gradients() = 0;  ///< null when not training
  virtual void round_to_storage() = 0;

  /// Forward only, dropout off. Adds the sum of the cross-entropies of the labelled positions to *loss_sum (device).
  virtual void forward(const ModelBatch& batch, double* loss_sum, SiteVisitor* visitor = nullptr) = 0;

  /// Forward and backward: as above, and adds d(sum of cross-entropies)/d(parameter) to gradients(). `dropout` false turns
  /// all dropout off (probe, gradient checks).
  virtual void forward_backward(const ModelBatch& batch, double* loss_sum, bool dropout) = 0;

  /// Forward with dropout off, then the logits of every position: (B, T, vocab_size) fp32 (f64 on the reference device) in
  /// host memory, row by row of the batch; for probe and tests.
  virtual void logits(const ModelBatch& batch, void* host_out) = 0;
};

/// Builds the model for config.model_type on `device`. Weights are zero until the caller fills master() and rounds.
/// Throws Error(usage) for an impossible config.
std::unique_ptr<Model> make_model(const ModelConfig& config, const ModelOptions& options, Device& device);

/// The parameter table alone, for counts and checkpoints.
ParameterTable make_parameter_table(const ModelConfig& config);

/// First row of the position table that position 0 uses: 2 for OPT, 0 otherwise; and the row that padding takes: 1 for OPT
/// (its position is cumsum(mask) * mask - 1 + 2), -1 (the ordinary position) otherwise.
std::int64_t position_offset(const ModelConfig& config);
std::int64_t padding_position(const ModelConfig& config);

}  // namespace outeffhop
