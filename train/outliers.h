// Outlier metrics of activations, as the OutEffHop and outlier-free-transformers code computes them (Bondarenko et al. 2023;
// Hu et al. 2024): the infinity norm and the kurtosis of each sample at chosen modules, averaged over samples.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "model/model.h"

namespace outeffhop {

/// mean((x - mean)^4) / (s^4 + 1e-6) with the unbiased standard deviation s of `count` values; a Gaussian has about 3.
double kurtosis(const Moments& moments, std::int64_t count);

/// What a module is to the summary.
enum class OutlierGroup : std::uint8_t {
  ffn_output,        ///< output of the second feed-forward layer, before dropout and residual
  layernorm_output,  ///< BERT: the layer norm after the feed-forward block
  layernorm_input,   ///< BERT: what that layer norm reads; not among the kurtosis modules
  layer_output,      ///< OPT: the residual stream after a layer
  inner,             ///< OPT: the other modules of a layer
  final_layernorm,   ///< OPT: the last layer norm
};

/// One observed module. Samples are whole sequences (T x channels values), except where the reference's hooks see a
/// flattened (B T, channels) tensor: OPT's fc2 and the layer norm before it; there a sample is one token.
struct OutlierModule {
  std::string name;
  OutlierGroup group = OutlierGroup::inner;
  bool token_samples = false;
  double max_abs_sum = 0.0, kurtosis_sum = 0.0;
  std::int64_t samples = 0;

  /// The name for people: a residual sum has none of its own in Hugging Face's model.
  std::string label() const { return group == OutlierGroup::layernorm_input ? name + " (residual sum)" : name; }
  double inf_norm() const { return samples ? max_abs_sum / static_cast<double>(samples) : 0.0; }
  double mean_kurtosis() const { return samples ? kurtosis_sum / static_cast<double>(samples) : 0.0; }
};

/// The reference's summary. "max inf norm" is the largest, over modules, of the averages over samples: over feed-forward
/// outputs for BERT, over layer outputs for OPT; "average kurtosis" is the mean over the 2 L (BERT) or 5 L + 1 (OPT)
/// modules.
struct OutlierSummary {
  double max_inf_norm = 0.0;
  double average_kurtosis = 0.0, max_kurtosis = 0.0;
  double max_ffn_output = 0.0;
  double max_layernorm_input = 0.0, max_layernorm_output = 0.0;  ///< BERT
  double max_layer_output = 0.0;                                 ///< OPT
};

/// Watches the modules of the metric during observed forward passes of a BERT or OPT model.
class OutlierVisitor : public SiteVisitor {
 public:
  /// Room for batches of max_batch x max_sequence.
  OutlierVisitor(Device& device, const Model& model, std::int64_t max_batch, std::int64_t max_sequence);

  bool wants(const Site& site) const override;
  void visit(const Site& site, const SiteValue& value) override;

  const std::vector<OutlierModule>& modules() const { return modules_; }
  OutlierSummary summary() const;

 private:
  struct Watched {
    Site::Kind kind;
    std::size_t module;
  };
  void watch(const std::string& name, Site::Kind kind, OutlierGroup group, bool token_samples = false);
  const Watched* find(const Site& site) const;

  Device& device_;
  bool is_bert_;
  std::vector<OutlierModule> modules_;
  std::vector<Watched> watched_;
  Buffer moments_;
  std::vector<Moments> host_moments_;
};

}  // namespace outeffhop
