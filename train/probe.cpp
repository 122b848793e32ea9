#include "train/probe.h"

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "data/batch.h"
#include "kernels/device.h"
#include "model/model.h"
#include "train/config.h"
#include "train/device_batch.h"
#include "train/memory_limit.h"
#include "train/model_directory.h"
#include "train/safetensors.h"

namespace outeffhop {
namespace {

struct NamedValues {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

const char* kind_name(Site::Kind kind) {
  switch (kind) {
    case Site::Kind::embedding_sum:
      return "embedding_sum";
    case Site::Kind::projection:
      return "projection";
    case Site::Kind::activation:
      return "activation";
    case Site::Kind::context:
      return "context";
    case Site::Kind::scores:
      return "scores";
    case Site::Kind::probabilities:
      return "probabilities";
    case Site::Kind::residual_sum:
      return "residual_sum";
    case Site::Kind::layernorm:
      return "layernorm";
    case Site::Kind::logits:
      return "logits";
  }
  return "?";
}

bool is_attention(const Site& site) { return site.kind == Site::Kind::scores || site.kind == Site::Kind::probabilities; }

/// Device values as floats on the host.
std::vector<float> floats_of(Device& device, const Tensor& tensor, std::int64_t count) {
  std::vector<float> out(static_cast<std::size_t>(count));
  if (tensor.dtype == DType::f32) {
    device.copy_out(out.data(), tensor.data, out.size() * sizeof(float));
    device.synchronize();
    return out;
  }
  require(tensor.dtype == DType::bf16, "probe cannot read values of dtype {}", name_of(tensor.dtype));
  std::vector<bf16> stored(out.size());
  device.copy_out(stored.data(), tensor.data, stored.size() * sizeof(bf16));
  device.synchronize();
  std::transform(stored.begin(), stored.end(), out.begin(), [](bf16 value) { return static_cast<float>(value); });
  return out;
}

/// Writes down every site.
class Recorder : public SiteVisitor {
 public:
  Recorder(Device& device, const Model& model, bool attention)
      : device_(device), heads_(model.config().num_attention_heads), attention_(attention) {
    std::map<std::string, int> uses;
    for (const Site& site : model.sites()) ++uses[site.name];
    for (const Site& site : model.sites()) {
      names_[{site.name, site.kind}] = uses[site.name] > 1 ? site.name + "." + kind_name(site.kind) : site.name;
    }
  }

  bool wants(const Site& site) const override { return attention_ || !is_attention(site); }

  void visit(const Site& site, const SiteValue& value) override {
    if (!wants(site)) return;
    const std::vector<float> seen = floats_of(device_, value.data, value.samples * value.rows_per_sample * value.channels);
    NamedValues& named = recorded_[names_.at({site.name, site.kind})];
    if (!is_attention(site)) {
      // A head shows its labelled rows a chunk at a time, as one sample; everything else comes whole.
      const std::int64_t rows = value.row_begin + value.rows_per_sample;
      require(value.row_begin == 0 ||
                  (value.samples == 1 && static_cast<std::int64_t>(named.values.size()) == value.row_begin * value.channels),
              "{} was shown rows from {} on, not after those before", site.name, value.row_begin);
      named.shape = {value.samples, rows, value.channels};
      if (site.kind == Site::Kind::logits) named.shape = {value.samples * rows, value.channels};
      if (value.row_begin == 0) named.values.clear();
      named.values.insert(named.values.end(), seen.begin(), seen.end());
      return;
    }
    // A block of query rows of every head: (B, H, rows, Tk) into (B, H, T, Tk).
    const std::int64_t rows = value.rows_per_sample / heads_, T = value.channels;
    named.shape = {value.samples, heads_, T, T};
    named.values.resize(static_cast<std::size_t>(value.samples * heads_ * T * T));
    for (std::int64_t bh = 0; bh < value.samples * heads_; ++bh) {
      std::copy_n(seen.begin() + bh * rows * T, rows * T, named.values.begin() + (bh * T + value.row_begin) * T);
    }
  }

  std::map<std::string, NamedValues>& recorded() { return recorded_; }

 private:
  Device& device_;
  std::int64_t heads_;
  bool attention_;
  std::map<std::pair<std::string, Site::Kind>, std::string> names_;
  std::map<std::string, NamedValues> recorded_;
};

std::optional<std::vector<std::int32_t>> read_ids(const SafetensorsFile& file, const std::string& name,
                                                  const std::vector<std::int64_t>& shape) {
  const TensorEntry* entry = file.find(name);
  if (!entry) return std::nullopt;
  if (entry->shape != shape) {
    fail(ErrorKind::data, "{}: \"{}\" has the shape {}, but input_ids has {}", file.path().string(), name,
         shape_text(entry->shape), shape_text(shape));
  }
  std::vector<std::int32_t> ids(static_cast<std::size_t>(entry->count()));
  file.read_integers(*entry, ids.data());
  return ids;
}

/// The lengths that a mask of right padding means; empty when nothing is padded.
std::vector<std::int32_t> key_lengths(const std::vector<std::int32_t>& mask, std::int64_t B, std::int64_t T,
                                      const std::string& file) {
  std::vector<std::int32_t> lengths;
  bool padded = false;
  for (std::int64_t b = 0; b < B; ++b) {
    const auto row = mask.begin() + b * T;
    const auto length = std::find(row, row + T, 0) - row;
    const bool is_prefix = std::all_of(row, row + length, [](std::int32_t m) { return m == 1; }) &&
                           std::all_of(row + length, row + T, [](std::int32_t m) { return m == 0; });
    if (!is_prefix) {
      fail(ErrorKind::data,
           "{}: row {} of attention_mask is not ones followed by zeros; only padding at the right can be used", file, b);
    }
    padded = padded || length < T;
    lengths.push_back(static_cast<std::int32_t>(length));
  }
  return padded ? lengths : std::vector<std::int32_t>{};
}

struct ProbeBatch {
  Batch batch;
  std::vector<std::int32_t> type_ids;
  bool labelled = false;
};

ProbeBatch parse_batch(const std::filesystem::path& path, const ModelConfig& config) {
  const SafetensorsFile file(path);
  const TensorEntry* ids = file.find("input_ids");
  if (!ids) fail(ErrorKind::data, "{} has no tensor \"input_ids\"", path.string());
  if (ids->shape.size() != 2 || ids->count() == 0) {
    fail(ErrorKind::data, "{}: input_ids has the shape {}, but must be (sequences, tokens)", path.string(),
         shape_text(ids->shape));
  }
  for (const TensorEntry& entry : file.tensors()) {
    const char* const known[] = {"input_ids", "attention_mask", "token_type_ids", "labels"};
    if (std::find(std::begin(known), std::end(known), entry.name) == std::end(known)) {
      fail(ErrorKind::data, "{}: \"{}\" is not part of a batch (input_ids, attention_mask, token_type_ids, labels)",
           path.string(), entry.name);
    }
  }
  ProbeBatch result;
  Batch& batch = result.batch;
  batch.B = ids->shape[0];
  batch.T = ids->shape[1];
  if (batch.T > config.max_position_embeddings) {
    fail(ErrorKind::data, "{}: sequences of {} tokens, but the model has {} positions", path.string(), batch.T,
         config.max_position_embeddings);
  }
  batch.input_ids = *read_ids(file, "input_ids", ids->shape);
  for (std::int64_t b = 0; b < batch.B; ++b) batch.sample_ids.push_back(static_cast<std::uint64_t>(b));
  if (const auto mask = read_ids(file, "attention_mask", ids->shape)) {
    batch.key_lengths = key_lengths(*mask, batch.B, batch.T, path.string());
  }
  if (const auto types = read_ids(file, "token_type_ids", ids->shape)) {
    if (config.model_type != "bert") fail(ErrorKind::data, "{}: token_type_ids mean nothing to OPT", path.string());
    result.type_ids = *types;
  }
  batch.labels.assign(batch.input_ids.size(), kIgnoredLabel);
  if (const auto labels = read_ids(file, "labels", ids->shape)) {
    result.labelled = true;
    // A causal model's output at t is compared with the label at t + 1, as transformers shifts inside.
    const std::int64_t shift = config.model_type == "opt" ? 1 : 0;
    for (std::int64_t b = 0; b < batch.B; ++b) {
      for (std::int64_t t = 0; t + shift < batch.T; ++t) {
        batch.labels[static_cast<std::size_t>(b * batch.T + t)] =
            (*labels)[static_cast<std::size_t>(b * batch.T + t + shift)];
      }
    }
    if (std::all_of(batch.labels.begin(), batch.labels.end(), [](std::int32_t l) { return l == kIgnoredLabel; })) {
      fail(ErrorKind::data, "{}: labels holds nothing but -100: there is no loss", path.string());
    }
  }
  return result;
}

ProbeBatch read_batch(const std::filesystem::path& path, const ModelConfig& config) {
  try {
    return parse_batch(path, config);
  } catch (const Error& e) {
    // What is wrong with a safetensors file is else the fault of a checkpoint.
    if (e.kind() != ErrorKind::checkpoint) throw;
    fail(ErrorKind::data, "{}", e.what());
  }
}

}  // namespace

void probe(const ProbeOptions& options) {
  const ModelDirectory directory = read_model_directory(options.checkpoint);
  const ProbeBatch input = read_batch(options.batch, directory.config);
  ModelOptions model_options;
  model_options.dtype = dtype_of(options.dtype);
  model_options.max_batch = input.batch.B;
  model_options.max_sequence = input.batch.T;
  const DeviceChoice choice = choose_device(options.device);
  const auto device = make_device({choice.kind, options.threads});
  require_memory(directory.config, model_options, *device, device->memory().total > 0 ? 0 : 1);
  const auto model = make_model(directory.config, model_options, *device);
  device->copy_in(model->master().data, directory.weights.data(), directory.weights.size() * sizeof(float));
  model->round_to_storage();

  DeviceBatch device_batch(*device, directory.config, input.batch.B, input.batch.T);
  const ModelBatch batch = [&] {
    try {
      return device_batch.upload(input.batch, input.type_ids);
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::data) throw;
      fail(ErrorKind::data, "{}: {}", options.batch.string(), e.what());
    }
  }();
  const Buffer loss_sum(*device, sizeof(double));
  Recorder recorder(*device, *model, options.attention);
  model->forward(batch, loss_sum.as<double>(), &recorder);

  std::map<std::string, NamedValues>& out = recorder.recorded();
  NamedValues& logits = out["logits"];
  logits.shape = {batch.B, batch.T, directory.config.vocab_size};
  logits.values.resize(static_cast<std::size_t>(batch.B * batch.T * directory.config.vocab_size));
  model->logits(batch, logits.values.data());

  if (input.labelled) {
    device->zero(loss_sum.data(), sizeof(double));
    device->zero(model->gradients().data, directory.weights.size() * sizeof(float));
    model->forward_backward(batch, loss_sum.as<double>(), false);
    double sum = 0.0;
    device->copy_out(&sum, loss_sum.data(), sizeof sum);
    std::vector<float> gradients = floats_of(*device, model->gradients(), model->parameters().flat_size());
    const auto labels = static_cast<double>(batch.label_count);
    out["loss"] = {"loss", {}, {static_cast<float>(sum / labels)}};
    for (const Parameter& p : model->parameters().all()) {
      NamedValues& gradient = out["grad." + p.name];
      gradient.shape = p.shape;
      for (std::int64_t i = 0; i < p.count; ++i) {
        gradient.values.push_back(static_cast<float>(gradients[static_cast<std::size_t>(p.offset + i)] / labels));
      }
    }
  }

  std::vector<TensorToWrite> tensors;
  for (const auto& [name, named] : out) tensors.push_back({name, FileType::f32, named.shape, named.values.data()});
  write_safetensors(options.out, std::move(tensors));
  if (options.quiet) return;
  for (const std::string& note : directory.notes) fmt::print("{}\n", note);
  if (input.labelled) fmt::print("loss {:.7g}, {} labelled tokens\n", out["loss"].values[0], batch.label_count);
  fmt::print("{} tensors in {}\n", out.size(), options.out.string());
}

}  // namespace outeffhop
