#include "train/model_directory.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/error.h"
#include "model/model.h"
#include "train/checkpoint.h"
#include "train/files.h"
#include "train/huggingface_config.h"
#include "train/safetensors.h"

namespace outeffhop {
namespace {

/// Names under which the tied copy of a parameter may stand in a file.
std::vector<std::string> tied_names(const std::string& name) {
  if (name == "bert.embeddings.word_embeddings.weight") return {"cls.predictions.decoder.weight"};
  if (name == "cls.predictions.bias") return {"cls.predictions.decoder.bias"};
  if (name == "model.decoder.embed_tokens.weight") return {"lm_head.weight"};
  return {};
}

/// Other spellings of a parameter's own name.
std::vector<std::string> spellings(const std::string& name) {
  std::vector<std::string> names = {name};
  if (name.starts_with("model.")) names.push_back(name.substr(6));
  if (name.ends_with("LayerNorm.weight")) names.push_back(name.substr(0, name.size() - 6) + "gamma");
  if (name.ends_with("LayerNorm.bias")) names.push_back(name.substr(0, name.size() - 4) + "beta");
  return names;
}

bool is_foreign_head(const std::string& name) {
  return name.starts_with("bert.pooler.") || name.starts_with("cls.seq_relationship.") ||
         name == "bert.embeddings.position_ids";
}

const TensorEntry* find_any(const SafetensorsFile& file, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (const TensorEntry* entry = file.find(name)) return entry;
  }
  return nullptr;
}

void check_shape(const SafetensorsFile& file, const TensorEntry& entry, const Parameter& parameter) {
  if (entry.shape == parameter.shape) return;
  fail(ErrorKind::checkpoint, "{}: \"{}\" has the shape {}, but config.json asks for {}", file.path().string(), entry.name,
       shape_text(entry.shape), shape_text(parameter.shape));
}

/// The files that make a model directory, or what is there instead.
std::filesystem::path weights_file(const std::filesystem::path& directory) {
  const std::filesystem::path file = directory / "model.safetensors";
  if (std::filesystem::exists(status_of(file))) return file;
  for (const char* other : {"model.safetensors.index.json", "pytorch_model.bin"}) {
    if (std::filesystem::exists(status_of(directory / other))) {
      fail(ErrorKind::unsupported,
           "{} holds {}, but a single model.safetensors is needed: load and save_pretrained it once in "
           "transformers with a large max_shard_size",
           directory.string(), other);
    }
  }
  fail(ErrorKind::checkpoint, "{} has no model.safetensors", directory.string());
}

}  // namespace

std::vector<float> read_weights(const std::filesystem::path& path, const ParameterTable& table,
                                std::vector<std::string>* notes) {
  const SafetensorsFile file(path);
  // Before memory is taken for them: config.json may ask for far more than the file holds.
  std::vector<const TensorEntry*> entries;
  for (const Parameter& parameter : table.all()) {
    const TensorEntry* entry = find_any(file, spellings(parameter.name));
    if (!entry) entry = find_any(file, tied_names(parameter.name));
    if (!entry) fail(ErrorKind::checkpoint, "{} has no tensor \"{}\"", path.string(), parameter.name);
    check_shape(file, *entry, parameter);
    entries.push_back(entry);
  }
  std::vector<float> flat(static_cast<std::size_t>(table.flat_size()), 0.0f);
  std::set<std::string> used;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Parameter& parameter = table[i];
    const TensorEntry* entry = entries[i];
    const std::vector<std::string> tied = tied_names(parameter.name);
    float* values = flat.data() + parameter.offset;
    file.read_floats(*entry, values);
    used.insert(entry->name);
    const auto strange = std::count_if(values, values + parameter.count, [](float v) { return !std::isfinite(v); });
    if (strange > 0) {
      const std::string found =
          fmt::format("{}: {} of the {} values of \"{}\" are not finite", path.string(), strange, parameter.count, entry->name);
      if (!notes) fail(ErrorKind::checkpoint, "{}: go on from an earlier checkpoint with --resume DIR", found);
      notes->push_back(found);
    }

    for (const std::string& name : tied) {
      const TensorEntry* copy = file.find(name);
      if (!copy || !used.insert(name).second) continue;
      check_shape(file, *copy, parameter);
      std::vector<float> copied(static_cast<std::size_t>(parameter.count));
      file.read_floats(*copy, copied.data());
      if (!std::equal(copied.begin(), copied.end(), values)) {
        fail(ErrorKind::unsupported, "{}: \"{}\" differs from \"{}\"; in this model they are one tensor", path.string(),
             name, entry->name);
      }
    }
  }
  std::vector<std::string> passed_over;
  for (const TensorEntry& entry : file.tensors()) {
    if (used.contains(entry.name)) continue;
    if (!is_foreign_head(entry.name)) {
      fail(ErrorKind::checkpoint, "{}: the tensor \"{}\" belongs to nothing in the model of config.json", path.string(),
           entry.name);
    }
    passed_over.push_back(entry.name);
  }
  if (!passed_over.empty() && notes) {
    notes->push_back(fmt::format("not part of this model, passed over: {}", fmt::join(passed_over, ", ")));
  }
  return flat;
}

ModelDirectory read_model_directory(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(status_of(path))) {
    fail(ErrorKind::io, "{} is not a directory; a model directory holds config.json and model.safetensors", path.string());
  }
  ModelDirectory directory;
  directory.path = path;
  if (std::filesystem::is_directory(status_of(path / "checkpoints"))) {
    const auto newest = newest_checkpoint(path, &directory.notes);
    if (!newest) fail(ErrorKind::checkpoint, "{} holds no sound checkpoint", (path / "checkpoints").string());
    directory.path = *newest;
  } else if (std::filesystem::exists(status_of(path / "manifest.json"))) {
    verify_checkpoint(path);
  }
  const std::filesystem::path config_file = directory.path / "config.json";
  if (!std::filesystem::exists(status_of(config_file)))
    fail(ErrorKind::checkpoint, "{} has no config.json", directory.path.string());
  directory.config = parse_model_config(read_file(config_file), config_file.string());
  directory.weights = read_weights(weights_file(directory.path), make_parameter_table(directory.config), &directory.notes);
  if (std::filesystem::exists(status_of(directory.path / "trainer.json"))) {
    directory.run_config = read_checkpoint_state(directory.path).config;
  }
  return directory;
}

}  // namespace outeffhop
