#include "train/eval_command.h"

#include <algorithm>
#include <optional>

#include "data/shards.h"
#include "kernels/device.h"
#include "model/model.h"
#include "train/config.h"
#include "train/evaluation.h"
#include "train/memory_limit.h"
#include "train/metrics.h"
#include "train/model_directory.h"
#include "train/outliers.h"
#include "train/run_plan.h"
#include "train/sampling.h"

namespace outeffhop {
namespace {

/// What to ask of the model: as the run that trained it did, where it was one of ours, else by the data's metadata.
Config eval_config(const ModelDirectory& directory, const ShardMetadata& metadata, EvalOptions& options) {
  Config config;
  if (!directory.run_config.is_null()) {
    config = read_config(directory.run_config, (directory.path / "trainer.json").string());
  } else {
    config.model = directory.config;
    config.data.sequence_length = directory.config.max_position_embeddings;
  }
  if (options.sequence_length == 0) options.sequence_length = config.data.sequence_length;
  if (options.seed < 0) options.seed = config.evaluation.seed;
  if (!options.sampling.empty()) config.data.sampling = options.sampling;
  config.data.train = options.data;  // for messages
  config.data.sequence_length = options.sequence_length;
  config.schedule = {};
  resolve(config, metadata);
  return config;
}

nlohmann::ordered_json outliers_json(const OutlierVisitor& visitor, bool is_bert) {
  const OutlierSummary s = visitor.summary();
  nlohmann::ordered_json out = {{"max_inf_norm", finite_or_null(s.max_inf_norm)},
                                {"average_kurtosis", finite_or_null(s.average_kurtosis)},
                                {"max_kurtosis", finite_or_null(s.max_kurtosis)},
                                {"max_ffn_out_inf_norm", finite_or_null(s.max_ffn_output)}};
  if (is_bert) {
    out["max_layernorm_input_inf_norm"] = finite_or_null(s.max_layernorm_input);
    out["max_layernorm_output_inf_norm"] = finite_or_null(s.max_layernorm_output);
  } else {
    out["max_layer_inf_norm"] = finite_or_null(s.max_layer_output);
  }
  nlohmann::ordered_json modules = nlohmann::ordered_json::array();
  for (const OutlierModule& m : visitor.modules()) {
    modules.push_back({{"name", m.label()},
                       {"inf_norm", finite_or_null(m.inf_norm())},
                       {"kurtosis", finite_or_null(m.mean_kurtosis())},
                       {"samples", m.samples},
                       {"sample", m.token_samples ? "token" : "sequence"}});
  }
  out["modules"] = modules;
  return out;
}

}  // namespace

nlohmann::ordered_json run_eval(const EvalOptions& requested) {
  EvalOptions options = requested;
  const ModelDirectory directory = read_model_directory(options.checkpoint);
  const ShardSet shards(options.data);
  const Config config = eval_config(directory, shards.metadata(), options);
  const DataConfig& data = config.data;

  check_batch_tokens("--batch-size", options.batch_size, options.sequence_length);
  const auto sampler = make_sampler(config, shards, 0, false);

  ModelOptions model_options;
  model_options.dtype = dtype_of(options.dtype);
  model_options.max_batch = options.batch_size;
  model_options.max_sequence = options.sequence_length;
  model_options.training = false;
  const DeviceChoice choice = choose_device(options.device);
  const auto device = make_device({choice.kind, options.threads, options.eager});
  require_memory(directory.config, model_options, *device, device->memory().total > 0 ? 0 : 1);
  const auto model = make_model(directory.config, model_options, *device);
  device->copy_in(model->master().data, directory.weights.data(), directory.weights.size() * sizeof(float));
  model->round_to_storage();

  DeviceBatch device_batch(*device, directory.config, options.batch_size, options.sequence_length);
  const auto objective = make_objective(data, directory.config.vocab_size, static_cast<std::uint64_t>(options.seed));
  std::optional<OutlierVisitor> visitor;
  if (options.outliers) visitor.emplace(*device, *model, options.batch_size, options.sequence_length);
  const EvaluationResult result = evaluate(*device, *model, device_batch, *sampler, *objective,
                                           {options.batch_size, options.batches, {}}, visitor ? &*visitor : nullptr)
                                      .value();  // nothing stops it

  nlohmann::ordered_json out = {{"checkpoint", directory.path.string()},
                                {"data", options.data},
                                {"model_type", directory.config.model_type},
                                {"attn_softmax", directory.config.attn_softmax},
                                {"objective", data.objective},
                                {"sampling", data.sampling},
                                {"sequence_length", options.sequence_length},
                                {"batch_size", options.batch_size},
                                {"dtype", options.dtype},
                                {"device", device_text(*device, choice)},
                                {"samples", result.samples},
                                {"labelled_tokens", result.labels},
                                {"loss", finite_or_null(result.loss())},
                                {"perplexity", finite_or_null(result.perplexity())},
                                {"reference_perplexity", finite_or_null(result.reference_perplexity())}};
  const double unigram = unigram_perplexity(shards.metadata(), data.objective);
  if (unigram > 0) out["unigram_perplexity"] = unigram;
  if (visitor) out["outliers"] = outliers_json(*visitor, directory.config.model_type == "bert");
  if (!directory.notes.empty()) out["notes"] = directory.notes;
  return out;
}

std::string eval_text(const nlohmann::ordered_json& r) {
  const auto number = [](const nlohmann::ordered_json& value, int digits) {
    return value.is_number() ? fmt::format("{:.{}f}", value.get<double>(), digits) : std::string("not finite");
  };
  std::string text;
  const auto line = [&](const std::string& name, const std::string& value) {
    text += fmt::format("{:<24}{}\n", name, value);
  };
  if (r.contains("notes")) {
    for (const auto& note : r["notes"]) line("note", note.get<std::string>());
  }
  line("checkpoint", r["checkpoint"].get<std::string>());
  line("data", fmt::format("{}, {} sequences of {}, {} labelled tokens", r["data"].get<std::string>(),
                           r["samples"].get<std::int64_t>(), r["sequence_length"].get<std::int64_t>(),
                           r["labelled_tokens"].get<std::int64_t>()));
  line("device", r["device"].get<std::string>());
  line("loss", number(r["loss"], 5));
  line("perplexity", number(r["perplexity"], 4));
  line("reference perplexity", number(r["reference_perplexity"], 4) + "  (mean of batch means)");
  if (r.contains("unigram_perplexity")) {
    line("unigram perplexity", number(r["unigram_perplexity"], 1) + "  (knowing only how frequent tokens are)");
  }
  if (r.contains("outliers")) {
    const auto& o = r["outliers"];
    const bool is_bert = r["model_type"] == "bert";
    line("max inf norm", number(o["max_inf_norm"], 3) + (is_bert ? "  (feed-forward outputs)" : "  (layer outputs)"));
    line("average kurtosis", number(o["average_kurtosis"], 3));
    line("max kurtosis", number(o["max_kurtosis"], 3));
    if (is_bert) {
      line("max layer norm input", number(o["max_layernorm_input_inf_norm"], 3));
      line("max layer norm output", number(o["max_layernorm_output_inf_norm"], 3));
    } else {
      line("max feed-forward output", number(o["max_ffn_out_inf_norm"], 3));
    }
  }
  return text;
}

}  // namespace outeffhop
