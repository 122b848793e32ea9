// BertForMaskedLM: Devlin et al., "BERT: pre-training of deep bidirectional transformers", 2019, as Hugging Face has it.
// Post-LN: every sublayer's output, dropped out and added to its input, is normalised.
#include "model/language_model.h"

namespace outeffhop {
namespace {

std::string layer_name(std::int64_t i) { return fmt::format("bert.encoder.layer.{}", i); }

class Bert final : public LanguageModel {
 public:
  Bert(const ModelConfig& config, const ModelOptions& options, Device& device)
      : LanguageModel(config, options, bert_parameters(config), device) {
    const std::int64_t C = config_.hidden_size;
    word_ = weights_["bert.embeddings.word_embeddings.weight"];
    position_ = weights_["bert.embeddings.position_embeddings.weight"];
    type_ = weights_["bert.embeddings.token_type_embeddings.weight"];
    embedding_dropout_site_ = dropout_sites_++;
    embedding_norm_ = make_norm("bert.embeddings.LayerNorm", "bert.embeddings", Site::Kind::embedding_sum, -1, 0.0, 0);
    for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) layers_.push_back(make_layer(i));

    head_.C = head_.E = C;
    head_.V = config_.vocab_size;
    head_.projection = weights_.linear("cls.predictions.transform.dense", C, C);
    head_.activation = activation_of(config_.hidden_act);
    head_.norm = weights_.linear("cls.predictions.transform.LayerNorm", C, C);
    head_.epsilon = config_.layer_norm_eps;
    head_.decoder = {word_, weights_["cls.predictions.bias"], C, config_.vocab_size};
    head_.projection_site = sites_.add("cls.predictions.transform.dense", Site::Kind::projection);
    head_.activation_site = sites_.add("cls.predictions.transform.transform_act_fn", Site::Kind::activation);
    head_.norm_site = sites_.add("cls.predictions.transform.LayerNorm", Site::Kind::layernorm);
    head_.logits_site = sites_.add("cls.predictions.decoder", Site::Kind::logits);
    allocate();
  }

 private:
  ResidualNorm make_norm(const std::string& name, const std::string& sum_name, Site::Kind sum_kind, std::int64_t layer,
                         double dropout_probability, std::uint32_t dropout_site) {
    ResidualNorm norm;
    norm.weight = weights_[name + ".weight"];
    norm.bias = weights_[name + ".bias"];
    norm.C = config_.hidden_size;
    norm.epsilon = config_.layer_norm_eps;
    norm.dropout_probability = dropout_probability;
    norm.dropout_site = dropout_site;
    norm.sum_site = sites_.add(sum_name, sum_kind, layer);
    norm.out_site = sites_.add(name, Site::Kind::layernorm, layer);
    return norm;
  }

  /// A layer's blocks in forward order: that is also the order of sites and of dropout sites.
  Layer make_layer(std::int64_t i) {
    using Kind = Site::Kind;
    const std::int64_t C = config_.hidden_size, F = config_.intermediate_size;
    const std::string layer = layer_name(i), self = layer + ".attention.self",
                      attention_output = layer + ".attention.output";
    Layer l;
    l.name = layer;
    l.attention.C = C;
    l.attention.H = config_.num_attention_heads;
    l.attention.n = softmax_constant(config_.attn_softmax);
    l.attention.query_key_value = {weights_[self + ".query.weight"], weights_[self + ".query.bias"], C, 3 * C};
    l.attention.output = weights_.linear(attention_output + ".dense", C, C);
    l.attention.dropout_probability = config_.attention_probs_dropout_prob;
    l.attention.dropout_site = dropout_sites_++;
    l.attention.query_site = sites_.add(self + ".query", Kind::projection, i);
    l.attention.key_site = sites_.add(self + ".key", Kind::projection, i);
    l.attention.value_site = sites_.add(self + ".value", Kind::projection, i);
    l.attention.scores_site = sites_.add(self + ".scores", Kind::scores, i);
    l.attention.probabilities_site = sites_.add(self + ".probabilities", Kind::probabilities, i);
    l.attention.context_site = sites_.add(self, Kind::context, i);
    l.attention.output_site = sites_.add(attention_output + ".dense", Kind::projection, i);
    l.middle_norm = make_norm(attention_output + ".LayerNorm", attention_output, Kind::residual_sum, i,
                              config_.hidden_dropout_prob, dropout_sites_++);
    l.mlp.expand = weights_.linear(layer + ".intermediate.dense", C, F);
    l.mlp.contract = weights_.linear(layer + ".output.dense", F, C);
    l.mlp.activation = activation_of(config_.hidden_act);
    l.mlp.pre_site = sites_.add(layer + ".intermediate.dense", Kind::projection, i);
    l.mlp.post_site = sites_.add(layer + ".intermediate", Kind::activation, i);
    l.mlp.out_site = sites_.add(layer + ".output.dense", Kind::projection, i);
    l.outer_norm = make_norm(layer + ".output.LayerNorm", layer + ".output", Kind::residual_sum, i,
                             config_.hidden_dropout_prob, dropout_sites_++);
    return l;
  }

  void plan_body(Arena& activations, Arena&) override {
    const Capacity most = capacity();
    embedding_norm_.plan({activations, most}, embedding_norm_, Remade::never);
    plan_layers(activations);
  }

  ConstTensor body_forward(const Pass& pass) override {
    embed(pass);
    ConstTensor x = embedding_norm_.saved.out;  // (B, T, C)
    for (const Layer& l : layers_) {
      const Range range(device_, l.name.c_str());
      l.forward(pass, x, x, l.outer_norm.saved.sum);
      l.outer_norm.forward(pass, l.middle_norm.saved.out);
      x = l.outer_norm.saved.out;
    }
    return x;
  }

  /// Each gradient replaces the one it was made from: scratch.stream is d_out, then d_sum, then d_out of the norm before.
  void body_backward(const Pass& pass) override {
    const Tensor d_stream = pass.scratch.stream, d_branch = pass.scratch.branch;  // (B, T, C)
    for (std::size_t i = layers_.size(); i-- > 0;) {
      const Layer& l = layers_[i];
      const Range range(device_, l.name.c_str());
      const Tensor x = i ? layers_[i - 1].outer_norm.saved.out : embedding_norm_.saved.out;
      if (i) layers_[i - 1].outer_norm.remake_out(pass);
      if (i + 1 < layers_.size()) l.remake(pass, x, x);
      ConstTensor d_out = l.outer_norm.backward(pass, d_stream, {}, d_stream, d_branch);
      l.mlp.backward(pass, l.middle_norm.saved.out, d_out, {d_stream, true});
      d_out = l.middle_norm.backward(pass, d_stream, {}, d_stream, d_branch);
      l.attention.backward(pass, x, d_out, {d_stream, true});
    }
    drop_embedding(pass, d_stream);
    embedding_norm_.backward(pass, d_stream, {}, d_stream, {});
    embed_backward(pass, d_stream);
  }

  void embed(const Pass& pass) {
    const Range range(device_, "embeddings");
    EmbeddingForward op;
    op.rows = pass.rows();
    op.C = config_.hidden_size;
    op.token_ids = pass.batch.input_ids;
    op.position_ids = pass.batch.position_ids;
    op.type_ids = pass.batch.type_ids;
    op.token_table = word_.value;
    op.position_table = position_.value;
    op.type_table = type_.value;
    op.out = embedding_norm_.saved.sum;
    device_.run(op);
    embedding_norm_.forward(pass, {});
    drop_embedding(pass, embedding_norm_.saved.out);
  }

  /// The dropout after the embedding's layer norm, in place, on the values and on their gradient.
  void drop_embedding(const Pass& pass, Tensor x) {
    DropoutAdd op;
    op.dropout = pass.dropout(config_.hidden_dropout_prob, embedding_dropout_site_);
    if (!op.dropout) return;
    op.B = pass.B();
    op.T = pass.T();
    op.C = config_.hidden_size;
    op.x = x;
    op.out = x;
    device_.run(op);
  }

  void embed_backward(const Pass& pass, ConstTensor d_out) {
    const Range range(device_, "embeddings");
    EmbeddingBackward op;
    op.rows = pass.rows();
    op.C = config_.hidden_size;
    op.vocabulary = config_.vocab_size;
    op.positions = config_.max_position_embeddings;
    op.types = config_.type_vocab_size;
    op.token_ids = pass.batch.input_ids;
    op.position_ids = pass.batch.position_ids;
    op.type_ids = pass.batch.type_ids;
    op.padding_id = static_cast<std::int32_t>(config_.pad_token_id);
    op.d_out = d_out;
    op.d_token_table = word_.gradient;
    op.d_position_table = position_.gradient;
    op.d_type_table = type_.gradient;
    device_.run(op);
  }

  std::uint32_t dropout_sites_ = 0;  ///< declared so far
  Weight word_, position_, type_;    ///< (V, C), (max_position_embeddings, C), (type_vocab_size, C)
  std::uint32_t embedding_dropout_site_ = 0;
  ResidualNorm embedding_norm_;
};

}  // namespace

ParameterTable bert_parameters(const ModelConfig& config) {
  const std::int64_t C = config.hidden_size, F = config.intermediate_size;
  ParameterDeclarer declare(config);
  declare.embedding("bert.embeddings.word_embeddings", config.vocab_size, C, config.pad_token_id);
  declare.embedding("bert.embeddings.position_embeddings", config.max_position_embeddings, C);
  declare.embedding("bert.embeddings.token_type_embeddings", config.type_vocab_size, C);
  declare.layernorm("bert.embeddings.LayerNorm", C);
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string layer = layer_name(i), self = layer + ".attention.self";
    declare.query_key_value({self + ".query", self + ".key", self + ".value"}, C);
    declare.linear(layer + ".attention.output.dense", C, C);
    declare.layernorm(layer + ".attention.output.LayerNorm", C);
    declare.linear(layer + ".intermediate.dense", F, C);
    declare.linear(layer + ".output.dense", C, F);
    declare.layernorm(layer + ".output.LayerNorm", C);
  }
  declare.bias("cls.predictions.bias", config.vocab_size);
  declare.linear("cls.predictions.transform.dense", C, C);
  declare.layernorm("cls.predictions.transform.LayerNorm", C);
  return declare.take();
}

std::unique_ptr<Model> make_bert(const ModelConfig& config, const ModelOptions& options, Device& device) {
  return std::make_unique<Bert>(config, options, device);
}

}  // namespace outeffhop
