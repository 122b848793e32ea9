// inspect: a run directory.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <sstream>

#include "data/json.h"
#include "kernels/error.h"
#include "train/checkpoint.h"
#include "train/files.h"
#include "train/inspect.h"
#include "train/progress.h"

namespace outeffhop {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

/// Whether a process holds the lock of a run. Nothing is created or written; null where it cannot be told.
Json is_locked(const fs::path& lock) {
  if (!fs::exists(status_of(lock))) return false;
  const int descriptor = ::open(lock.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return nullptr;
  const bool refused = ::flock(descriptor, LOCK_SH | LOCK_NB) != 0;
  const bool held = refused && errno == EWOULDBLOCK;
  ::close(descriptor);
  return refused && !held ? Json(nullptr) : Json(held);
}

Json value_at(const nlohmann::json& config, const char* block, const char* name) {
  const auto in = config.find(block);
  if (in == config.end() || !in->is_object() || !in->contains(name)) return nullptr;
  return (*in)[name];
}

Json config_facts(const nlohmann::json& config) {
  Json facts = Json::object();
  for (const auto& [block, names] : std::initializer_list<std::pair<const char*, std::vector<const char*>>>{
           {"model",
            {"model_type", "attn_softmax", "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"}},
           {"data", {"train", "validation", "sequence_length", "sampling", "objective"}},
           {"training", {"steps", "global_batch_size", "micro_batch_size", "dtype", "seed"}},
           {"optimizer", {"learning_rate", "weight_decay"}},
           {"schedule", {"type", "warmup_steps"}}}) {
    for (const char* name : names) facts[fmt::format("{}.{}", block, name)] = value_at(config, block, name);
  }
  return facts;
}

struct Metrics {
  Json last_step = nullptr, last_evaluation = nullptr;
  std::int64_t lines = 0, unreadable = 0;
};

/// The last line of each kind. A run that was killed may leave one line half written.
Metrics read_last_metrics(const fs::path& file) {
  Metrics metrics;
  std::istringstream lines(read_file(file));
  for (std::string line; std::getline(lines, line); ++metrics.lines) {
    const Json object = Json::parse(line, nullptr, false);
    if (object.is_discarded() || !object.is_object() || !object.contains("step")) {
      ++metrics.unreadable;
    } else if (object.contains("validation_loss")) {
      metrics.last_evaluation = object;
    } else if (object.contains("loss")) {
      metrics.last_step = object;
    }
  }
  return metrics;
}

/// How far a run is: from its last logged step, or its newest sound checkpoint where nothing was logged.
Json progress_facts(const nlohmann::json& config, const Json& last_step, std::int64_t checkpoint_step) {
  const Json steps = value_at(config, "training", "steps"), batch = value_at(config, "training", "global_batch_size"),
             length = value_at(config, "data", "sequence_length");
  const std::int64_t step = last_step.is_object() && last_step["step"].is_number_integer()
                                ? last_step["step"].get<std::int64_t>()
                                : std::max<std::int64_t>(0, checkpoint_step);
  Json facts = {{"step", step}, {"steps", steps}};
  if (!steps.is_number_integer() || steps.get<std::int64_t>() < 1) return facts;
  const std::int64_t left = std::max<std::int64_t>(0, steps.get<std::int64_t>() - step);
  facts["percent"] = 100.0 * static_cast<double>(step) / static_cast<double>(steps.get<std::int64_t>());
  const Json rate = last_step.is_object() ? last_step.value("tokens_per_second", Json()) : Json();
  if (batch.is_number_integer() && length.is_number_integer() && rate.is_number() && rate.get<double>() > 0) {
    const double tokens = static_cast<double>(left) * batch.get<double>() * length.get<double>();
    facts["seconds_left"] = tokens / rate.get<double>();
    facts["time_left"] = duration_text(tokens / rate.get<double>());
  }
  return facts;
}

/// One row a checkpoint, newest first: {checkpoint, bytes, state}.
Json checkpoint_rows(const fs::path& run, std::int64_t* newest_sound_step, Inspection& found) {
  Json rows = Json::array();
  for (const fs::path& checkpoint : list_checkpoints(run)) {
    const Json files = inspect_files(checkpoint, found);
    std::uint64_t bytes = 0;
    std::string state = files.empty() ? "damaged" : "sound";
    for (const Json& file : files) {
      if (file["bytes"].is_number()) bytes += file["bytes"].get<std::uint64_t>();
      if (file["state"] != "sound" && file["state"] != "not in the manifest" && state == "sound") {
        state = fmt::format("{}: {}", file["file"].get<std::string>(), file["state"].get<std::string>());
      }
    }
    if (state == "sound" && *newest_sound_step < 0) {
      const bool read = found.attempt([&] { *newest_sound_step = read_checkpoint_state(checkpoint).snapshot.state.step; });
      if (!read) state = "damaged";
    }
    rows.push_back({{"checkpoint", checkpoint.filename().string()}, {"bytes", bytes}, {"state", state}});
  }
  return rows;
}

}  // namespace

void inspect_run(const fs::path& run, Inspection& found) {
  found.facts["kind"] = "run directory";
  found.facts["directory"] = run.string();
  found.facts["a_process_trains_in_it"] = is_locked(run / "lock");

  nlohmann::json config = nlohmann::json::object();
  found.attempt([&] {
    const std::string file = (run / "config.json").string();
    const nlohmann::json read = parse_json(read_present_file(file), file, {.kind = ErrorKind::checkpoint});
    if (!read.is_object()) fail(ErrorKind::checkpoint, "{} is no JSON object", file);
    config = read;
  });
  Metrics metrics;
  if (fs::exists(status_of(run / "metrics.jsonl"))) metrics = read_last_metrics(run / "metrics.jsonl");
  std::int64_t checkpoint_step = -1;
  const Json checkpoints = checkpoint_rows(run, &checkpoint_step, found);

  found.facts["progress"] = progress_facts(config, metrics.last_step, checkpoint_step);
  found.facts["resumes_after_step"] = checkpoint_step < 0 ? Json(nullptr) : Json(checkpoint_step);
  if (metrics.unreadable > 0) found.facts["unreadable_lines_of_metrics"] = metrics.unreadable;
  if (!config.empty()) found.facts["configuration"] = config_facts(config);
  found.facts["checkpoints"] = checkpoints.empty() ? Json("none") : checkpoints;
  found.facts["last_step"] = metrics.last_step.is_null() ? Json("none logged") : metrics.last_step;
  if (!metrics.last_evaluation.is_null()) found.facts["last_evaluation"] = metrics.last_evaluation;
}

}  // namespace outeffhop
