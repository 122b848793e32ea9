#include "train/checkpoint.h"

#include <fcntl.h>

#include <algorithm>
#include <cstdio>

#include "kernels/error.h"
#include "train/checkpoint_files.h"
#include "train/files.h"
#include "train/model_directory.h"
#include "train/safetensors.h"

namespace outeffhop {
namespace fs = std::filesystem;
namespace {

constexpr const char* kPrefix = "step_";
constexpr const char* kUnfinished = ".unfinished";
constexpr const char* kDeleted = ".deleted";

/// The step in a checkpoint's directory name; -1 where the name is no checkpoint's.
std::int64_t step_of(const fs::path& directory) {
  const std::string name = directory.filename().string();
  const std::string digits = name.starts_with(kPrefix) ? name.substr(5) : "";
  if (digits.size() < 8 || digits.size() > 18 ||
      !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; })) {
    return -1;
  }
  return std::stoll(digits);
}

void rename_directory(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) fail(ErrorKind::io, "cannot rename {} to {}: {}", from.string(), to.string(), error.message());
}

void remove_directory(const fs::path& directory) {
  std::error_code error;
  fs::remove_all(directory, error);
  if (error) fail(ErrorKind::io, "cannot delete {}: {}", directory.string(), error.message());
}

void remove_checkpoint(const fs::path& checkpoint) {
  const fs::path deleted = checkpoint.string() + kDeleted;  // one that is half deleted is no checkpoint
  rename_directory(checkpoint, deleted);
  remove_directory(deleted);
}

/// Gives a finished checkpoint its name. One of the same step, as where a run went on from another run's checkpoint, is
/// replaced in one go where the file system can do that.
void publish(const fs::path& unfinished, const fs::path& checkpoint) {
  if (fs::exists(status_of(checkpoint))) {
    if (::renameat2(AT_FDCWD, unfinished.c_str(), AT_FDCWD, checkpoint.c_str(), RENAME_EXCHANGE) == 0) {
      return remove_directory(unfinished);
    }
    const fs::path deleted = checkpoint.string() + kDeleted;
    rename_directory(checkpoint, deleted);
    rename_directory(unfinished, checkpoint);
    return remove_directory(deleted);
  }
  rename_directory(unfinished, checkpoint);
}

std::vector<TensorToWrite> named_tensors(const ParameterTable& table, const std::vector<float>& flat,
                                         const std::string& suffix) {
  require(static_cast<std::int64_t>(flat.size()) == table.flat_size(), "a snapshot of {} values for a model of {}",
          flat.size(), table.flat_size());
  std::vector<TensorToWrite> tensors;
  for (const Parameter& p : table.all())
    tensors.push_back({p.name + suffix, FileType::f32, p.shape, flat.data() + p.offset});
  return tensors;
}

void read_moments(const fs::path& path, const ParameterTable& table, Snapshot& snapshot) {
  const SafetensorsFile file(path);
  snapshot.first_moments.assign(static_cast<std::size_t>(table.flat_size()), 0.0f);
  snapshot.second_moments = snapshot.first_moments;
  for (const Parameter& p : table.all()) {
    for (const auto& [suffix, flat] :
         {std::pair(".m", &snapshot.first_moments), std::pair(".v", &snapshot.second_moments)}) {
      const TensorEntry* entry = file.find(p.name + suffix);
      if (!entry || entry->shape != p.shape) {
        fail(ErrorKind::checkpoint, "{} has no tensor \"{}{}\" of the shape {}", path.string(), p.name, suffix,
             shape_text(p.shape));
      }
      file.read_floats(*entry, flat->data() + p.offset);
    }
  }
}

/// Writes every file of a checkpoint into the directory `path` and brings them to the disk.
void write_files(const CheckpointContext& context, const ParameterTable& table, const Snapshot& snapshot,
                 const fs::path& path) {
  nlohmann::ordered_json files = nlohmann::ordered_json::object();
  const auto list = [&](const std::string& name, const WrittenFile& written) {
    files[name] = {{"size", written.bytes}, {"xxh64", written.xxh64}};
  };
  const auto write = [&](const std::string& name, std::string_view contents) {
    list(name, write_durable(path / name, contents));
  };
  write("config.json", write_huggingface_config(context.model, context.text_ids).dump(2) + "\n");
  list("model.safetensors", write_safetensors(path / "model.safetensors", named_tensors(table, snapshot.weights, "")));
  std::vector<TensorToWrite> moments = named_tensors(table, snapshot.first_moments, ".m");
  for (TensorToWrite& tensor : named_tensors(table, snapshot.second_moments, ".v")) moments.push_back(std::move(tensor));
  list("optimizer.safetensors", write_safetensors(path / "optimizer.safetensors", std::move(moments)));

  const TrainerState& state = snapshot.state;
  nlohmann::ordered_json trainer = {{"format_version", kCheckpointFormatVersion},
                                    {"program", std::string("outeffhop ") + OUTEFFHOP_VERSION},
                                    {"step", state.step},
                                    {"updates", state.updates},
                                    {"samples", state.samples},
                                    {"tokens", state.tokens},
                                    {"bad_steps_in_a_row", state.bad_steps_in_a_row},
                                    {"seconds", state.seconds},
                                    {"window_losses", state.spikes.losses},
                                    {"window_gradient_norms", state.spikes.gradient_norms},
                                    {"resumed_from", state.resumed_from},
                                    {"data_fingerprint", context.data_fingerprint},
                                    {"device", context.device},
                                    {"config", context.config}};
  if (!snapshot.plans.empty()) trainer["plans"] = snapshot.plans;
  write("trainer.json", trainer.dump(2) + "\n");
  for (const ExtraFile& file : context.extra_files) write(file.name, file.contents);
  const nlohmann::ordered_json manifest = {{"format_version", kCheckpointFormatVersion}, {"files", files}};
  write_durable(path / "manifest.json", manifest.dump(2) + "\n");
  sync_directory(path);
}

}  // namespace

fs::path write_checkpoint(const CheckpointContext& context, const ParameterTable& table, const Snapshot& snapshot) {
  const fs::path parent = context.run / "checkpoints";
  const fs::path final_path = parent / fmt::format("{}{:08}", kPrefix, snapshot.state.step);
  const fs::path path = final_path.string() + kUnfinished;
  const bool is_first = !fs::exists(status_of(parent));
  std::error_code error;
  fs::remove_all(path, error);
  fs::create_directories(path, error);
  if (error) fail(ErrorKind::io, "cannot create {}: {}", path.string(), error.message());
  try {
    if (is_first) sync_directory(context.run);
    write_files(context, table, snapshot, path);
    verify_checkpoint(path);
    const fs::path metrics = context.run / "metrics.jsonl";
    if (fs::exists(status_of(metrics))) sync_file(metrics);
    publish(path, final_path);
    sync_directory(parent);
  } catch (...) {
    fs::remove_all(path, error);  // it may be what fills the disk
    throw;
  }
  return final_path;
}

void verify_checkpoint(const fs::path& checkpoint) {
  const fs::path manifest_file = checkpoint / "manifest.json";
  if (!fs::exists(status_of(manifest_file))) fail(ErrorKind::checkpoint, "{} has no manifest.json", checkpoint.string());
  for (const ManifestEntry& entry : parse_manifest(read_file(manifest_file), manifest_file.string())) {
    const fs::path file = checkpoint / entry.name;
    std::error_code error;
    const std::uintmax_t size = fs::file_size(file, error);
    if (error) fail(ErrorKind::checkpoint, "{} is missing", file.string());
    if (size != entry.bytes) {
      fail(ErrorKind::checkpoint, "{} has {} bytes instead of {}", file.string(), size, entry.bytes);
    }
    if (hash_file(file) != entry.xxh64) {
      fail(ErrorKind::checkpoint, "{} is damaged: its bytes do not match the hash in manifest.json", file.string());
    }
  }
}

std::vector<fs::path> list_checkpoints(const fs::path& run) {
  std::vector<fs::path> found;
  for (const fs::path& entry : entries_of(run / "checkpoints")) {
    if (step_of(entry) >= 0 && fs::is_directory(status_of(entry))) found.push_back(entry);
  }
  std::sort(found.begin(), found.end(), [](const fs::path& a, const fs::path& b) { return step_of(a) > step_of(b); });
  return found;
}

std::optional<fs::path> newest_checkpoint(const fs::path& run, std::vector<std::string>* notes) {
  for (const fs::path& checkpoint : list_checkpoints(run)) {
    try {
      verify_checkpoint(checkpoint);
      return checkpoint;
    } catch (const Error& e) {
      if (notes) notes->push_back(fmt::format("passed over {}: {}", checkpoint.filename().string(), e.what()));
    }
  }
  return std::nullopt;
}

Resumable read_checkpoint_state(const fs::path& checkpoint) {
  const fs::path file = checkpoint / "trainer.json";
  if (!fs::exists(status_of(file))) {
    fail(ErrorKind::checkpoint, "{} has no trainer.json: a model directory of another program cannot be continued",
         checkpoint.string());
  }
  return parse_trainer(read_file(file), file.string());
}

Resumable read_checkpoint(const fs::path& checkpoint, const ParameterTable& table) {
  Resumable result = read_checkpoint_state(checkpoint);
  result.snapshot.weights = read_weights(checkpoint / "model.safetensors", table, nullptr);
  read_moments(checkpoint / "optimizer.safetensors", table, result.snapshot);
  return result;
}

std::size_t set_aside_later_checkpoints(const fs::path& run, std::int64_t step) {
  std::size_t count = 0;
  for (const fs::path& checkpoint : list_checkpoints(run)) {
    if (step_of(checkpoint) <= step) continue;
    fs::path aside = checkpoint.string() + ".superseded";
    for (int i = 2; fs::exists(status_of(aside)); ++i) aside = fmt::format("{}.superseded.{}", checkpoint.string(), i);
    rename_directory(checkpoint, aside);
    ++count;
  }
  return count;
}

/// Gives a checkpoint its name back that was moved out of the way of its successor, if the crash came before that one had it
/// and nothing was deleted yet (see publish()).
static bool put_back(const fs::path& deleted) {
  const fs::path checkpoint = fs::path(deleted).replace_extension();
  if (fs::exists(status_of(checkpoint))) return false;
  try {
    verify_checkpoint(deleted);
  } catch (const Error&) {
    return false;
  }
  rename_directory(deleted, checkpoint);
  return true;
}

void remove_leftovers(const fs::path& run) {
  for (const fs::path& path : entries_of(run / "checkpoints")) {
    if (path.extension() == kDeleted && put_back(path)) continue;
    if (path.extension() == kUnfinished || path.extension() == kDeleted) remove_directory(path);
  }
}

void prune_checkpoints(const fs::path& run, std::int64_t keep_last, std::int64_t keep_every) {
  remove_leftovers(run);
  const std::vector<fs::path> checkpoints = list_checkpoints(run);
  for (std::size_t i = static_cast<std::size_t>(std::max<std::int64_t>(1, keep_last)); i < checkpoints.size(); ++i) {
    if (keep_every > 0 && step_of(checkpoints[i]) % keep_every == 0) continue;
    remove_checkpoint(checkpoints[i]);
  }
}

}  // namespace outeffhop
