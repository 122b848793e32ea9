#include "train/outliers.h"

#include <algorithm>

namespace outeffhop {

double kurtosis(const Moments& moments, std::int64_t count) {
  const auto n = static_cast<double>(count);
  const double variance = moments.square_sum / (n - 1.0);
  return (moments.fourth_sum / n) / (variance * variance + 1e-6);
}

OutlierVisitor::OutlierVisitor(Device& device, const Model& model, std::int64_t max_batch, std::int64_t max_sequence)
    : device_(device), is_bert_(model.config().model_type == "bert") {
  for (std::int64_t layer = 0; layer < model.config().num_hidden_layers; ++layer) {
    if (is_bert_) {
      const std::string output = fmt::format("bert.encoder.layer.{}.output", layer);
      watch(output + ".dense", Site::Kind::projection, OutlierGroup::ffn_output);
      watch(output, Site::Kind::residual_sum, OutlierGroup::layernorm_input);
      watch(output + ".LayerNorm", Site::Kind::layernorm, OutlierGroup::layernorm_output);
    } else {
      const std::string name = fmt::format("model.decoder.layers.{}", layer);
      watch(name + ".self_attn_layer_norm", Site::Kind::layernorm, OutlierGroup::inner);
      watch(name + ".self_attn.out_proj", Site::Kind::projection, OutlierGroup::inner);
      watch(name + ".final_layer_norm", Site::Kind::layernorm, OutlierGroup::inner, true);
      watch(name + ".fc2", Site::Kind::projection, OutlierGroup::ffn_output, true);
      watch(name, Site::Kind::residual_sum, OutlierGroup::layer_output);
    }
  }
  if (!is_bert_) watch("model.decoder.final_layer_norm", Site::Kind::layernorm, OutlierGroup::final_layernorm);

  for (const Watched& w : watched_) {
    const std::string& name = modules_[w.module].name;
    require(std::any_of(model.sites().begin(), model.sites().end(),
                        [&](const Site& site) { return site.name == name && site.kind == w.kind; }),
            "the model declares no site for the outlier metric of {}", name);
  }
  host_moments_.resize(static_cast<std::size_t>(max_batch * max_sequence));
  moments_ = Buffer(device, host_moments_.size() * sizeof(Moments));
}

void OutlierVisitor::watch(const std::string& name, Site::Kind kind, OutlierGroup group, bool token_samples) {
  watched_.push_back({kind, modules_.size()});
  OutlierModule module;
  module.name = name;
  module.group = group;
  module.token_samples = token_samples;
  modules_.push_back(std::move(module));
}

const OutlierVisitor::Watched* OutlierVisitor::find(const Site& site) const {
  const auto found = std::find_if(watched_.begin(), watched_.end(), [&](const Watched& w) {
    return w.kind == site.kind && modules_[w.module].name == site.name;
  });
  return found == watched_.end() ? nullptr : &*found;
}

bool OutlierVisitor::wants(const Site& site) const { return find(site) != nullptr; }

void OutlierVisitor::visit(const Site& site, const SiteValue& value) {
  const Watched* watched = find(site);
  if (!watched) return;
  OutlierModule& module = modules_[watched->module];
  RowMoments op;
  op.rows = module.token_samples ? value.samples * value.rows_per_sample : value.samples;
  op.C = module.token_samples ? value.channels : value.rows_per_sample * value.channels;
  op.x = value.data;
  op.moments = moments_.as<Moments>();
  require(op.rows <= static_cast<std::int64_t>(host_moments_.size()), "{} rows at {} where {} were planned for", op.rows,
          site.name, host_moments_.size());
  device_.run(op);
  device_.copy_out(host_moments_.data(), moments_.data(), static_cast<std::size_t>(op.rows) * sizeof(Moments));
  device_.synchronize();
  for (std::int64_t row = 0; row < op.rows; ++row) {
    const Moments& moments = host_moments_[static_cast<std::size_t>(row)];
    module.max_abs_sum += moments.max_abs;
    module.kurtosis_sum += kurtosis(moments, op.C);
  }
  module.samples += op.rows;
}

OutlierSummary OutlierVisitor::summary() const {
  // The larger of two values, or the NaN among them: one that std::max would drop, depending on its place.
  const auto larger = [](double a, double b) { return std::isnan(a) || a > b ? a : b; };
  const auto largest = [&](OutlierGroup group) {
    double result = 0.0;
    for (const OutlierModule& m : modules_) {
      if (m.group == group) result = larger(result, m.inf_norm());
    }
    return result;
  };
  OutlierSummary s;
  s.max_ffn_output = largest(OutlierGroup::ffn_output);
  s.max_layernorm_input = largest(OutlierGroup::layernorm_input);
  s.max_layernorm_output = largest(OutlierGroup::layernorm_output);
  s.max_layer_output = largest(OutlierGroup::layer_output);
  s.max_inf_norm = is_bert_ ? s.max_ffn_output : s.max_layer_output;
  std::int64_t count = 0;
  for (const OutlierModule& m : modules_) {
    if (m.group == OutlierGroup::layernorm_input) continue;
    s.average_kurtosis += m.mean_kurtosis();
    s.max_kurtosis = larger(s.max_kurtosis, m.mean_kurtosis());
    ++count;
  }
  s.average_kurtosis /= static_cast<double>(count);
  return s;
}

}  // namespace outeffhop
