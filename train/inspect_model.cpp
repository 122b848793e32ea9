// inspect: safetensors files, and model directories with or without what a checkpoint of ours adds.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <set>

#include "kernels/attention.h"
#include "kernels/error.h"
#include "model/model.h"
#include "train/checkpoint.h"
#include "train/checkpoint_files.h"
#include "train/files.h"
#include "train/inspect.h"
#include "train/metrics.h"
#include "train/model_directory.h"
#include "train/safetensors.h"

namespace outeffhop {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

struct Statistics {
  double minimum = std::numeric_limits<double>::infinity(), maximum = -minimum, mean = 0.0;
  std::int64_t finite = 0, non_finite = 0;
};

/// Of a tensor's finite values; their sum is taken in double, in order.
Statistics statistics_of(const SafetensorsFile& file, const TensorEntry& entry) {
  std::vector<float> values(static_cast<std::size_t>(entry.count()));
  if (entry.type == FileType::i64 || entry.type == FileType::i32) {
    std::vector<std::int32_t> integers(values.size());
    file.read_integers(entry, integers.data());
    std::copy(integers.begin(), integers.end(), values.begin());
  } else {
    file.read_floats(entry, values.data());
  }
  Statistics s;
  double sum = 0.0;
  for (const double value : values) {
    if (!std::isfinite(value)) {
      ++s.non_finite;
      continue;
    }
    ++s.finite;
    sum += value;
    s.minimum = std::min(s.minimum, value);
    s.maximum = std::max(s.maximum, value);
  }
  s.mean = s.finite > 0 ? sum / static_cast<double>(s.finite) : std::nan("");
  return s;
}

Json tensor_facts(const SafetensorsFile& file, Inspection& found) {
  Json rows = Json::array();
  for (const TensorEntry& entry : file.tensors()) {
    Json row = {{"tensor", entry.name}, {"dtype", name_of(entry.type)}, {"shape", shape_text(entry.shape)}};
    found.attempt([&] {
      const Statistics s = statistics_of(file, entry);
      row["min"] = finite_or_null(s.minimum);
      row["max"] = finite_or_null(s.maximum);
      row["mean"] = finite_or_null(s.mean);
      row["non_finite"] = s.non_finite;
    });
    rows.push_back(std::move(row));
  }
  return rows;
}

/// What a whole file of tensors amounts to: {tensors, values, dtype, largest_magnitude, of, non_finite}.
Json weights_facts(const Json& tensors, const SafetensorsFile& file) {
  std::int64_t values = 0, non_finite = 0;
  std::set<std::string> types;
  double largest = -1.0;
  Json of = nullptr;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Json& row = tensors[i];
    values += file.tensors()[i].count();
    types.insert(row["dtype"].get<std::string>());
    if (!row.contains("non_finite")) continue;
    non_finite += row["non_finite"].get<std::int64_t>();
    for (const char* end : {"min", "max"}) {
      if (row[end].is_null() || std::abs(row[end].get<double>()) <= largest) continue;
      largest = std::abs(row[end].get<double>());
      of = row["tensor"];
    }
  }
  return {{"tensors", tensors.size()},
          {"values", values},
          {"dtype", types},
          {"largest_magnitude", largest < 0 ? Json(nullptr) : Json(largest)},
          {"of_tensor", of},
          {"non_finite", non_finite}};
}

Json model_facts(const ModelConfig& m) {
  return {{"model_type", m.model_type},
          {"attn_softmax", m.attn_softmax},
          {"softmax_constant", softmax_constant(m.attn_softmax)},
          {"parameters", make_parameter_table(m).total()},
          {"vocab_size", m.vocab_size},
          {"hidden_size", m.hidden_size},
          {"num_hidden_layers", m.num_hidden_layers},
          {"num_attention_heads", m.num_attention_heads},
          {"intermediate_size", m.intermediate_size},
          {"hidden_act", m.hidden_act},
          {"max_position_embeddings", m.max_position_embeddings},
          {"hidden_dropout_prob", m.hidden_dropout_prob},
          {"attention_probs_dropout_prob", m.attention_probs_dropout_prob},
          {"pad_token_id", m.pad_token_id >= 0 ? Json(m.pad_token_id) : Json(nullptr)}};
}

Json training_facts(const Resumable& run) {
  const TrainerState& state = run.snapshot.state;
  Json facts = {{"step", state.step},
                {"updates", state.updates},
                {"skipped_steps", state.step - state.updates},
                {"bad_steps_in_a_row", state.bad_steps_in_a_row},
                {"samples", state.samples},
                {"seconds", state.seconds},
                {"data_fingerprint", run.data_fingerprint},
                {"device", run.device}};
  for (const auto& [block, name] : {std::pair("training", "steps"),
                                    {"training", "dtype"},
                                    {"training", "seed"},
                                    {"training", "global_batch_size"},
                                    {"data", "sequence_length"},
                                    {"data", "train"},
                                    {"data", "objective"},
                                    {"optimizer", "learning_rate"},
                                    {"schedule", "type"}}) {
    const auto in = run.config.find(block);
    if (in != run.config.end() && in->is_object() && in->contains(name)) {
      facts[fmt::format("{}.{}", block, name)] = (*in)[name];
    }
  }
  return facts;
}

/// A file that is missing where it belongs is damage of the whole, not the file system's.
void require_file(const fs::path& file) {
  if (!fs::exists(status_of(file))) fail(ErrorKind::checkpoint, "{} is missing", file.string());
}

/// The tensors that a checkpoint of ours must hold for its config.json, `suffix` behind each parameter's name.
void check_tensors(const SafetensorsFile& file, const ParameterTable& table, const char* suffix) {
  for (const Parameter& p : table.all()) {
    const TensorEntry* entry = file.find(p.name + suffix);
    if (!entry || entry->shape != p.shape) {
      fail(ErrorKind::checkpoint, "{} has no tensor \"{}{}\" of the shape {}, which config.json asks for",
           file.path().string(), p.name, suffix, shape_text(p.shape));
    }
  }
}

}  // namespace

void inspect_safetensors(const fs::path& path, Inspection& found) {
  found.facts["kind"] = "safetensors file";
  found.facts["file"] = path.string();
  std::error_code error;
  const std::uintmax_t bytes = fs::file_size(path, error);
  if (!error) found.facts["file_bytes"] = bytes;
  found.attempt([&] {
    const SafetensorsFile file(path);
    const Json tensors = tensor_facts(file, found);
    found.facts.update(weights_facts(tensors, file));
    if (!file.metadata().empty()) found.facts["metadata"] = file.metadata();
    found.facts["tensor_table"] = tensors;
  });
}

std::string read_present_file(const fs::path& file) {
  require_file(file);
  return read_file(file);
}

Json inspect_files(const fs::path& checkpoint, Inspection& found) {
  const fs::path manifest_file = checkpoint / "manifest.json";
  std::vector<ManifestEntry> listed;
  const bool readable =
      found.attempt([&] { listed = parse_manifest(read_present_file(manifest_file), manifest_file.string()); });
  Json rows = Json::array();
  for (const ManifestEntry& entry : listed) {
    const fs::path file = checkpoint / entry.name;
    Json row = {{"file", entry.name}, {"bytes", nullptr}, {"state", "missing"}};
    found.attempt([&] {
      require_file(file);
      std::error_code error;
      const std::uintmax_t bytes = fs::file_size(file, error);
      row["state"] = "unreadable";
      if (error) fail(ErrorKind::checkpoint, "cannot look at {}: {}", file.string(), error.message());
      row["bytes"] = bytes;
      row["state"] = "another size";
      if (bytes != entry.bytes) {
        fail(ErrorKind::checkpoint, "{} has {} bytes instead of {}", file.string(), bytes, entry.bytes);
      }
      row["state"] = "damaged";
      if (hash_file(file) != entry.xxh64) {
        fail(ErrorKind::checkpoint, "{} is damaged: its bytes do not match the hash in manifest.json", file.string());
      }
      row["state"] = "sound";
    });
    rows.push_back(std::move(row));
  }
  std::vector<fs::path> entries = entries_of(checkpoint);
  std::sort(entries.begin(), entries.end());
  for (const fs::path& path : entries) {
    const std::string name = path.filename().string();
    const auto is_it = [&](const ManifestEntry& entry) { return entry.name == name; };
    if (name == "manifest.json" || std::any_of(listed.begin(), listed.end(), is_it)) continue;
    std::error_code error;
    const std::uintmax_t bytes = fs::file_size(path, error);
    rows.push_back({{"file", name},
                    {"bytes", error ? Json(nullptr) : Json(bytes)},
                    {"state", readable ? "not in the manifest" : "not verified"}});
  }
  return rows;
}

void inspect_model_directory(const fs::path& directory, Inspection& found) {
  const bool has_manifest = fs::exists(status_of(directory / "manifest.json"));
  const bool has_trainer = fs::exists(status_of(directory / "trainer.json"));
  found.facts["kind"] = has_manifest || has_trainer ? "checkpoint" : "model directory";
  found.facts["directory"] = directory.string();
  if (has_manifest || has_trainer) {
    found.facts["verified"] = false;  // in its place, before the rest
    const Json files = inspect_files(directory, found);
    found.facts["verified"] = found.exit_code == 0;
    found.facts["files"] = files;
  }

  std::optional<ParameterTable> table;
  found.attempt([&] {
    const fs::path file = directory / "config.json";
    const ModelConfig config = parse_model_config(read_present_file(file), file.string());
    table = make_parameter_table(config);
    found.facts["model"] = model_facts(config);
  });
  if (has_trainer) {
    found.attempt([&] { found.facts["training"] = training_facts(read_checkpoint_state(directory)); });
  }
  for (const char* name : {"model", "optimizer"}) {
    const fs::path path = directory / (std::string(name) + ".safetensors");
    const bool is_model = std::string(name) == "model";
    if (!fs::exists(status_of(path)) && !(is_model || has_trainer)) continue;
    found.attempt([&] {
      require_file(path);
      const SafetensorsFile file(path);
      const Json facts = weights_facts(tensor_facts(file, found), file);
      found.facts[is_model ? "weights" : "moments"] = facts;
      if (facts["non_finite"] != 0) {
        fail(ErrorKind::checkpoint, "{} holds {} values that are not finite", path.string(), facts["non_finite"].dump());
      }
      if (!table || !has_trainer) return;
      for (const char* suffix : is_model ? std::vector<const char*>{""} : std::vector<const char*>{".m", ".v"}) {
        check_tensors(file, *table, suffix);
      }
    });
  }
}

}  // namespace outeffhop
