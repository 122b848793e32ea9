#include "train/checkpoint_files.h"

#include <limits>

#include "data/json.h"
#include "kernels/error.h"

namespace outeffhop {
namespace {

/// Typed access to one of the files, so that every complaint names file, key and value.
class Reader {
 public:
  Reader(std::string_view text, std::string origin)
      : origin_(std::move(origin)), root_(parse_json(text, origin_, {.kind = ErrorKind::checkpoint})) {
    if (!root_.is_object()) fail(ErrorKind::checkpoint, "{}: expected a JSON object, got {}", origin_, root_.type_name());
    if (at("format_version") != kCheckpointFormatVersion) {
      fail(ErrorKind::checkpoint, "{} has format version {}; this program reads {}", origin_,
           dump_text(at("format_version")), kCheckpointFormatVersion);
    }
  }

  const nlohmann::json& at(const char* key) const {
    const auto found = root_.find(key);
    if (found == root_.end()) fail(ErrorKind::checkpoint, "{} lacks \"{}\"", origin_, key);
    return *found;
  }

  const nlohmann::json& object(const char* key) const {
    if (!at(key).is_object()) complain(key, "an object");
    return at(key);
  }

  std::int64_t count(const char* key) const {
    const nlohmann::json& value = at(key);
    // A number without sign or fraction is stored unsigned.
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max()) {
      complain(key, "a whole number, at least 0");
    }
    return value.get<std::int64_t>();
  }

  double seconds(const char* key) const {
    if (!at(key).is_number() || !(at(key).get<double>() >= 0.0)) complain(key, "a number, at least 0");
    return at(key).get<double>();
  }

  std::string text(const char* key) const {
    if (!at(key).is_string()) complain(key, "a string");
    return at(key).get<std::string>();
  }

  /// The list at `key`; an empty one where there is none.
  std::vector<double> numbers(const char* key) const {
    std::vector<double> result;
    if (!contains(key)) return result;
    if (!at(key).is_array()) complain(key, "a list of numbers");
    for (const nlohmann::json& number : at(key)) {
      if (!number.is_number()) complain(key, "a list of numbers");
      result.push_back(number.get<double>());
    }
    return result;
  }

  bool contains(const char* key) const { return root_.contains(key); }

 private:
  [[noreturn]] void complain(const char* key, const char* expected) const {
    fail(ErrorKind::checkpoint, "{}: \"{}\" is {}, but must be {}", origin_, key, dump_text(at(key)), expected);
  }

  std::string origin_;
  nlohmann::json root_;
};

}  // namespace

std::vector<ManifestEntry> parse_manifest(std::string_view text, const std::string& origin) {
  const Reader reader(text, origin);
  const nlohmann::json& files = reader.object("files");
  if (!files.contains("model.safetensors")) fail(ErrorKind::checkpoint, "{} does not list a checkpoint's files", origin);
  std::vector<ManifestEntry> entries;
  for (const auto& [name, entry] : files.items()) {
    const bool is_file_name = !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
                              name.find('\0') == std::string::npos;
    if (!is_file_name || !entry.is_object() || !entry.contains("size") || !entry.contains("xxh64") ||
        !entry["size"].is_number_unsigned() || !entry["xxh64"].is_string()) {
      fail(ErrorKind::checkpoint, "{}: the entry of \"{}\" is damaged", origin, name);
    }
    entries.push_back({name, entry["size"].get<std::uint64_t>(), entry["xxh64"].get<std::string>()});
  }
  return entries;
}

Resumable parse_trainer(std::string_view text, const std::string& origin) {
  const Reader reader(text, origin);
  Resumable result;
  TrainerState& state = result.snapshot.state;
  state.step = reader.count("step");
  state.updates = reader.count("updates");
  state.samples = reader.count("samples");
  state.tokens = reader.contains("tokens") ? reader.count("tokens") : -1;
  state.bad_steps_in_a_row = reader.count("bad_steps_in_a_row");
  state.seconds = reader.seconds("seconds");
  // Absent in checkpoints of versions that had no z-scores.
  state.spikes.losses = reader.numbers("window_losses");
  state.spikes.gradient_norms = reader.numbers("window_gradient_norms");
  if (state.spikes.losses.size() != state.spikes.gradient_norms.size()) {
    fail(ErrorKind::checkpoint, "{} has {} window_losses and {} window_gradient_norms", origin, state.spikes.losses.size(),
         state.spikes.gradient_norms.size());
  }
  if (reader.contains("resumed_from")) state.resumed_from = reader.text("resumed_from");
  result.data_fingerprint = reader.text("data_fingerprint");
  result.config = reader.object("config");
  if (reader.contains("device")) result.device = reader.text("device");
  if (reader.contains("plans")) result.snapshot.plans = reader.text("plans");
  return result;
}

}  // namespace outeffhop
