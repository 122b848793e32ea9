// OPTForCausalLM: Zhang et al., "OPT: open pre-trained transformer language models", 2022, as Hugging Face has it with
// do_layer_norm_before. Pre-LN: a residual stream runs through, each sublayer reads its normalised copy and adds to it.
//
// A ResidualNorm here is the joint where the last sublayer's output enters the stream and the stream is normalised for the
// next one. So the stream after layer i is the `sum` of what follows: layer i + 1's first norm, or the final norm.
#include "model/language_model.h"

namespace outeffhop {
namespace {

std::string layer_name(std::int64_t i) { return fmt::format("model.decoder.layers.{}", i); }

class Opt final : public LanguageModel {
 public:
  Opt(const ModelConfig& config, const ModelOptions& options, Device& device)
      : LanguageModel(config, options, opt_parameters(config), device) {
    using Kind = Site::Kind;
    const std::int64_t C = config_.hidden_size, E = config_.embedding_size();
    tokens_ = weights_["model.decoder.embed_tokens.weight"];
    positions_ = weights_["model.decoder.embed_positions.weight"];
    if (projected()) {
      project_in_ = weights_.linear("model.decoder.project_in", E, C, false);
      project_in_site_ = sites_.add("model.decoder.project_in", Kind::projection);
    }
    stream_site_ = sites_.add("model.decoder.embeddings", Kind::embedding_sum);
    for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) layers_.push_back(make_layer(i));
    final_norm_ = make_norm("model.decoder.final_layer_norm", -1, stream_site_, stream_dropout_site_);

    head_.C = C;
    head_.E = E;
    head_.V = config_.vocab_size;
    if (projected()) {
      head_.projection = weights_.linear("model.decoder.project_out", C, E, false);
      head_.projection_site = sites_.add("model.decoder.project_out", Kind::projection);
    }
    head_.decoder = {tokens_, {}, E, config_.vocab_size};
    head_.logits_site = sites_.add("lm_head", Kind::logits);
    allocate();
  }

 private:
  bool projected() const { return config_.embedding_size() != config_.hidden_size; }

  ResidualNorm make_norm(const std::string& name, std::int64_t layer, std::size_t sum_site, std::uint32_t dropout_site) {
    ResidualNorm norm;
    norm.weight = weights_[name + ".weight"];
    norm.bias = weights_[name + ".bias"];
    norm.C = config_.hidden_size;
    norm.epsilon = config_.layer_norm_eps;
    norm.dropout_probability = config_.hidden_dropout_prob;
    norm.dropout_site = dropout_site;
    norm.sum_goes_on = true;
    norm.sum_site = sum_site;
    norm.out_site = sites_.add(name, Site::Kind::layernorm, layer);
    return norm;
  }

  /// A layer's blocks in forward order: that is also the order of sites and of dropout sites.
  Layer make_layer(std::int64_t i) {
    using Kind = Site::Kind;
    const std::int64_t C = config_.hidden_size, F = config_.intermediate_size;
    const std::string layer = layer_name(i), self = layer + ".self_attn";
    Layer l;
    l.name = layer;
    l.outer_norm = make_norm(layer + ".self_attn_layer_norm", i, stream_site_, stream_dropout_site_);
    if (i == 0) l.outer_norm.dropout_probability = 0.0;  // OPT drops nothing of its embeddings
    l.attention.C = C;
    l.attention.H = config_.num_attention_heads;
    l.attention.n = softmax_constant(config_.attn_softmax);
    l.attention.causal = true;
    l.attention.query_key_value = {weights_[self + ".q_proj.weight"], weights_[self + ".q_proj.bias"], C, 3 * C};
    l.attention.output = weights_.linear(self + ".out_proj", C, C);
    l.attention.dropout_probability = config_.attention_probs_dropout_prob;
    l.attention.dropout_site = dropout_sites_++;
    l.attention.query_site = sites_.add(self + ".q_proj", Kind::projection, i);
    l.attention.key_site = sites_.add(self + ".k_proj", Kind::projection, i);
    l.attention.value_site = sites_.add(self + ".v_proj", Kind::projection, i);
    l.attention.scores_site = sites_.add(self + ".scores", Kind::scores, i);
    l.attention.probabilities_site = sites_.add(self + ".probabilities", Kind::probabilities, i);
    l.attention.context_site = sites_.add(self, Kind::context, i);
    l.attention.output_site = sites_.add(self + ".out_proj", Kind::projection, i);
    const std::size_t middle_site = sites_.add(self + ".residual", Kind::residual_sum, i);
    l.middle_norm = make_norm(layer + ".final_layer_norm", i, middle_site, dropout_sites_++);
    l.mlp.expand = weights_.linear(layer + ".fc1", C, F);
    l.mlp.contract = weights_.linear(layer + ".fc2", F, C);
    l.mlp.activation = activation_of(config_.hidden_act);
    l.mlp.pre_site = sites_.add(layer + ".fc1", Kind::projection, i);
    l.mlp.post_site = sites_.add(layer + ".activation_fn", Kind::activation, i);
    l.mlp.out_site = sites_.add(layer + ".fc2", Kind::projection, i);
    stream_site_ = sites_.add(layer, Kind::residual_sum, i);
    stream_dropout_site_ = dropout_sites_++;
    return l;
  }

  void plan_body(Arena& activations, Arena& workspace) override {
    const Capacity most = capacity();
    if (projected()) {
      token_rows_ = activations.take(most.rows() * config_.embedding_size(), most.dtype);
      projected_rows_ = workspace.take(most.rows() * config_.hidden_size, most.dtype);
    }
    plan_layers(activations);
    final_norm_.plan({activations, most}, final_norm_, Remade::never);
    if (options_.training) d_inner_ = workspace.take(most.rows() * config_.hidden_size, most.dtype);
  }

  ConstTensor body_forward(const Pass& pass) override {
    embed(pass, layers_[0].outer_norm.saved.sum);
    ConstTensor stream;  // (B, T, C) before the sublayer whose output is on its way into it; null for layer 0
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Layer& l = layers_[i];
      const Range range(device_, l.name.c_str());
      const ResidualNorm& next = i + 1 < layers_.size() ? layers_[i + 1].outer_norm : final_norm_;
      l.outer_norm.forward(pass, stream);
      l.forward(pass, l.outer_norm.saved.out, l.outer_norm.saved.sum, next.saved.sum);
      stream = l.middle_norm.saved.sum;
    }
    final_norm_.forward(pass, stream);
    return final_norm_.saved.out;
  }

  /// scratch.stream carries the gradient of the residual stream, d_inner_ that of its normalised copy.
  void body_backward(const Pass& pass) override {
    const Tensor d_stream = pass.scratch.stream, d_branch = pass.scratch.branch;  // (B, T, C)
    ConstTensor d_out = final_norm_.backward(pass, d_stream, {}, d_stream, d_branch);
    for (std::size_t i = layers_.size(); i-- > 0;) {
      const Layer& l = layers_[i];
      const Range range(device_, l.name.c_str());
      if (i + 1 < layers_.size()) {
        l.outer_norm.remake_out(pass);
        l.remake(pass, l.outer_norm.saved.out, l.outer_norm.saved.sum);
      }
      l.mlp.backward(pass, l.middle_norm.saved.out, d_out, {d_inner_});
      d_out = l.middle_norm.backward(pass, d_inner_, d_stream, d_stream, d_branch);
      l.attention.backward(pass, l.outer_norm.saved.out, d_out, {d_inner_});
      d_out = l.outer_norm.backward(pass, d_inner_, d_stream, d_stream, d_branch);
    }
    embed_backward(pass, d_stream);
  }

  /// out (B, T, C) = tokens, projected where they are narrower than the model, plus positions.
  void embed(const Pass& pass, Tensor out) {
    const Range range(device_, "embeddings");
    EmbeddingForward op;
    op.rows = pass.rows();
    op.token_ids = pass.batch.input_ids;
    op.token_table = tokens_.value;
    if (projected()) {
      op.C = config_.embedding_size();
      op.out = token_rows_;  // (B, T, E)
      device_.run(op);
      linear_forward(device_, project_in_, pass.rows(), token_rows_, projected_rows_);  // (B, T, C)
      pass.show(project_in_site_, projected_rows_, config_.hidden_size);
      op.token_table = {};
      op.base = projected_rows_;
    }
    op.C = config_.hidden_size;
    op.position_ids = pass.batch.position_ids;
    op.position_table = positions_.value;
    op.out = out;
    device_.run(op);
  }

  void embed_backward(const Pass& pass, ConstTensor d_out) {
    const Range range(device_, "embeddings");
    EmbeddingBackward op;
    op.rows = pass.rows();
    op.C = config_.hidden_size;
    op.vocabulary = config_.vocab_size;
    op.positions = config_.max_position_embeddings + position_offset(config_);
    op.token_ids = pass.batch.input_ids;
    op.position_ids = pass.batch.position_ids;
    op.padding_id = static_cast<std::int32_t>(config_.pad_token_id);
    op.d_out = d_out;
    op.d_position_table = positions_.gradient;
    if (!projected()) op.d_token_table = tokens_.gradient;
    device_.run(op);
    if (!projected()) return;
    const Tensor d_token_rows = pass.scratch.wide;  // (B, T, E)
    linear_backward(device_, project_in_, pass.rows(), token_rows_, d_out, {d_token_rows});
    op.C = config_.embedding_size();
    op.d_out = d_token_rows;
    op.d_position_table = {};
    op.d_token_table = tokens_.gradient;
    device_.run(op);
  }

  std::uint32_t dropout_sites_ = 0;  ///< declared so far
  Weight tokens_, positions_;        ///< (V, E), (max_position_embeddings + 2, C)
  LinearLayer project_in_;           ///< (C, E), without bias; only where E differs from C
  std::size_t project_in_site_ = 0;
  std::size_t stream_site_ = 0;            ///< the stream after the layers declared so far
  std::uint32_t stream_dropout_site_ = 0;  ///< on what entered it last
  Tensor token_rows_;      ///< (B, T, E)
  Tensor projected_rows_;  ///< (B, T, C)
  Tensor d_inner_;         ///< (B, T, C) gradient of a sublayer's input
  ResidualNorm final_norm_;
};

}  // namespace

ParameterTable opt_parameters(const ModelConfig& config) {
  const std::int64_t C = config.hidden_size, E = config.embedding_size(), F = config.intermediate_size;
  ParameterDeclarer declare(config);
  declare.embedding("model.decoder.embed_tokens", config.vocab_size, E, config.pad_token_id);
  declare.embedding("model.decoder.embed_positions", config.max_position_embeddings + position_offset(config), C);
  if (E != C) {
    declare.linear("model.decoder.project_out", E, C, false);
    declare.linear("model.decoder.project_in", C, E, false);
  }
  declare.layernorm("model.decoder.final_layer_norm", C);
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string layer = layer_name(i), self = layer + ".self_attn";
    declare.query_key_value({self + ".q_proj", self + ".k_proj", self + ".v_proj"}, C);
    declare.attention_linear(self + ".out_proj", C);
    declare.layernorm(layer + ".self_attn_layer_norm", C);
    declare.linear(layer + ".fc1", F, C);
    declare.linear(layer + ".fc2", C, F);
    declare.layernorm(layer + ".final_layer_norm", C);
  }
  return declare.take();
}

std::unique_ptr<Model> make_opt(const ModelConfig& config, const ModelOptions& options, Device& device) {
  return std::make_unique<Opt>(config, options, device);
}

}  // namespace outeffhop
