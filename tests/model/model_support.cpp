#include "tests/model/model_support.h"

#include <cmath>
#include <cstring>

#include "model/head.h"

namespace outeffhop::test {

ModelConfig tiny_bert(const std::string& attn_softmax) {
  ModelConfig config;
  config.model_type = "bert";
  config.vocab_size = 19;
  config.hidden_size = 12;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 3;
  config.intermediate_size = 14;
  config.hidden_dropout_prob = 0.2;
  config.attention_probs_dropout_prob = 0.3;
  config.max_position_embeddings = 9;
  config.type_vocab_size = 2;
  config.pad_token_id = 3;
  config.attn_softmax = attn_softmax;
  return config;
}

ModelConfig tiny_opt(const std::string& attn_softmax, std::int64_t word_embed_proj_dim) {
  ModelConfig config = tiny_bert(attn_softmax);
  config.model_type = "opt";
  config.layer_norm_eps = 1e-5;
  config.word_embed_proj_dim = word_embed_proj_dim;
  config.pad_token_id = 1;
  return config;
}

HostBatch random_batch(const ModelConfig& config, std::mt19937_64& rng, std::int64_t B, std::int64_t T,
                       std::vector<std::int32_t> key_lengths) {
  HostBatch batch;
  batch.B = B;
  batch.T = T;
  batch.key_lengths = std::move(key_lengths);
  const auto pad = static_cast<std::int32_t>(config.pad_token_id);
  std::uniform_int_distribution<std::int32_t> token(0, static_cast<std::int32_t>(config.vocab_size) - 1);
  std::uniform_int_distribution<std::int32_t> type(0, static_cast<std::int32_t>(config.type_vocab_size) - 1);
  std::bernoulli_distribution labelled(0.5);
  for (std::int64_t b = 0; b < B; ++b) {
    batch.sample_ids.push_back(1000003 * static_cast<std::uint64_t>(b + 1) + rng() % 1000);
    const std::int64_t length = batch.key_lengths.empty() ? T : batch.key_lengths[static_cast<std::size_t>(b)];
    for (std::int64_t t = 0; t < T; ++t) {
      std::int32_t id = token(rng);
      while (id == pad) id = token(rng);
      const bool padding = t >= length;
      const auto position = static_cast<std::int32_t>(position_offset(config) + t);
      batch.input_ids.push_back(padding ? pad : id);
      batch.position_ids.push_back(
          padding && padding_position(config) >= 0 ? static_cast<std::int32_t>(padding_position(config)) : position);
      batch.type_ids.push_back(type(rng));
      if (!padding && labelled(rng)) {
        batch.label_rows.push_back(static_cast<std::int32_t>(b * T + t));
        batch.label_ids.push_back(token(rng));
      }
    }
  }
  return batch;
}

HostBatch one_sample(const HostBatch& batch, std::int64_t b) {
  const std::int64_t T = batch.T;
  const auto part = [&](const auto& all) { return std::vector(all.begin() + b * T, all.begin() + (b + 1) * T); };
  HostBatch one;
  one.B = 1;
  one.T = T;
  one.input_ids = part(batch.input_ids);
  one.position_ids = part(batch.position_ids);
  one.type_ids = part(batch.type_ids);
  if (!batch.key_lengths.empty()) one.key_lengths = {batch.key_lengths[static_cast<std::size_t>(b)]};
  one.sample_ids = {batch.sample_ids[static_cast<std::size_t>(b)]};
  for (std::size_t i = 0; i < batch.label_rows.size(); ++i) {
    if (batch.label_rows[i] / T != b) continue;
    one.label_rows.push_back(static_cast<std::int32_t>(batch.label_rows[i] - b * T));
    one.label_ids.push_back(batch.label_ids[i]);
  }
  return one;
}

template <class T>
const T* DeviceBatch::copy(Device& device, const std::vector<T>& values) {
  if (values.empty()) return nullptr;
  buffers_.emplace_back(device, values.size() * sizeof(T));
  device.copy_in(buffers_.back().data(), values.data(), values.size() * sizeof(T));
  return buffers_.back().as<const T>();
}

DeviceBatch::DeviceBatch(Device& device, const HostBatch& batch) {
  view_.B = batch.B;
  view_.T = batch.T;
  view_.input_ids = copy(device, batch.input_ids);
  view_.position_ids = copy(device, batch.position_ids);
  view_.type_ids = copy(device, batch.type_ids);
  view_.key_lengths = copy(device, batch.key_lengths);
  view_.sample_ids = copy(device, batch.sample_ids);
  view_.label_count = static_cast<std::int64_t>(batch.label_rows.size());
  const auto padded = [](std::vector<std::int32_t> labels) {
    labels.resize(static_cast<std::size_t>(Head::padded_rows(std::ssize(labels))), -1);
    return labels;
  };
  view_.label_rows = copy(device, padded(batch.label_rows));
  view_.label_ids = copy(device, padded(batch.label_ids));
}

std::vector<double> random_parameters(const ParameterTable& table, std::mt19937_64& rng) {
  std::normal_distribution<double> normal;
  std::vector<double> flat(static_cast<std::size_t>(table.flat_size()), 0.0);
  for (const Parameter& p : table.all()) {
    const double scale = p.shape.size() == 2 ? 0.8 / std::sqrt(static_cast<double>(p.shape[1])) : 0.3;
    for (std::int64_t e = 0; e < p.count; ++e) {
      flat[static_cast<std::size_t>(p.offset + e)] = (p.layernorm_weight ? 1.0 : 0.0) + scale * normal(rng);
    }
  }
  return flat;
}

ModelUnderTest::ModelUnderTest(const ModelConfig& config, const ModelOptions& options, Device& device)
    : device_(device), model_(make_model(config, options, device)), loss_(device, sizeof(double)) {}

void ModelUnderTest::set_parameters(const std::vector<double>& flat) {
  write_tensor(device_, model_->master(), flat);
  model_->round_to_storage();
}

std::vector<double> ModelUnderTest::stored_parameters() {
  return read_tensor(device_, model_->storage(), model_->parameters().flat_size());
}

double ModelUnderTest::forward(const HostBatch& batch, SiteVisitor* visitor) {
  const DeviceBatch on_device(device_, batch);
  device_.zero(loss_.data(), sizeof(double));
  model_->forward(on_device.view(), loss_.as<double>(), visitor);
  return read_tensor(device_, {loss_.data(), DType::f64}, 1)[0];
}

LossAndGradient ModelUnderTest::forward_backward(const HostBatch& batch, bool dropout) {
  return forward_backward(std::vector<HostBatch>{batch}, dropout);
}

LossAndGradient ModelUnderTest::forward_backward(const std::vector<HostBatch>& batches, bool dropout) {
  const Tensor gradients = model_->gradients();
  const std::int64_t count = model_->parameters().flat_size();
  device_.zero(gradients.data, static_cast<std::size_t>(count) * size_of(gradients.dtype));
  device_.zero(loss_.data(), sizeof(double));
  for (const HostBatch& batch : batches) {
    const DeviceBatch on_device(device_, batch);
    model_->forward_backward(on_device.view(), loss_.as<double>(), dropout);
    device_.synchronize();
  }
  return {read_tensor(device_, {loss_.data(), DType::f64}, 1)[0], read_tensor(device_, gradients, count)};
}

std::vector<double> ModelUnderTest::logits(const HostBatch& batch) {
  const DeviceBatch on_device(device_, batch);
  const auto count = static_cast<std::size_t>(batch.B * batch.T * model_->config().vocab_size);
  if (model_->master().dtype == DType::f64) {
    std::vector<double> values(count);
    model_->logits(on_device.view(), values.data());
    return values;
  }
  std::vector<float> values(count);
  model_->logits(on_device.view(), values.data());
  return {values.begin(), values.end()};
}

std::vector<double> read_tensor(Device& device, ConstTensor tensor, std::int64_t count) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(count) * size_of(tensor.dtype));
  device.copy_out(bytes.data(), tensor.data, bytes.size());
  device.synchronize();
  std::vector<double> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::byte* at = bytes.data() + i * size_of(tensor.dtype);
    const auto as = [&](auto value) {
      std::memcpy(&value, at, sizeof value);
      return value;
    };
    if (tensor.dtype == DType::f64) {
      values[i] = as(double{});
    } else if (tensor.dtype == DType::f32) {
      values[i] = as(float{});
    } else {
      values[i] = static_cast<float>(as(bf16{}));
    }
  }
  return values;
}

void write_tensor(Device& device, Tensor tensor, const std::vector<double>& values) {
  const auto put = [&](auto kind) {
    using Element = decltype(kind);
    std::vector<Element> elements(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) elements[i] = Element(static_cast<float>(values[i]));
    if constexpr (sizeof(Element) == 8) {
      for (std::size_t i = 0; i < values.size(); ++i) elements[i] = values[i];
    }
    device.copy_in(tensor.data, elements.data(), elements.size() * sizeof(Element));
    device.synchronize();
  };
  if (tensor.dtype == DType::f64) {
    put(double{});
  } else if (tensor.dtype == DType::f32) {
    put(float{});
  } else {
    put(bf16{});
  }
}

std::string error_message(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

double norm(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double v : values) sum += v * v;
  return std::sqrt(sum);
}

double norm(const Parameter& parameter, const std::vector<double>& values) {
  return distance(parameter, values, std::vector<double>(values.size(), 0.0));
}

double distance(const Parameter& parameter, const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (std::int64_t e = parameter.offset; e < parameter.offset + parameter.count; ++e) {
    const double d = a[static_cast<std::size_t>(e)] - b[static_cast<std::size_t>(e)];
    sum += d * d;
  }
  return std::sqrt(sum);
}

double error_scale(const ParameterTable& table, const Parameter& parameter, const std::vector<double>& truth) {
  double scale = norm(parameter, truth);
  std::string name = parameter.name;
  for (const auto& [key, query] : {std::pair{".key.bias", ".query.bias"}, std::pair{".k_proj.bias", ".q_proj.bias"}}) {
    if (!name.ends_with(key)) continue;
    name.replace(name.size() - std::strlen(key), std::string::npos, query);
    scale = std::max(scale, norm(*table.find(name), truth));
  }
  return scale;
}

}  // namespace outeffhop::test
