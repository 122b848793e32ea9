// metrics.jsonl: one JSON object a logged step or evaluation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

namespace outeffhop {

class MetricsFile {
 public:
  /// Opens the file to append, keeping only the objects of steps up to `last_step`: what a continued run will do again is
  /// cut off, as is a line that a crash left unfinished. 0 starts an empty file. Throws Error(io).
  MetricsFile(const std::filesystem::path& path, std::int64_t last_step);

  /// Appends one object (with a "step") as a line, at once visible to readers. Throws Error(io).
  void write(const nlohmann::ordered_json& object);

  /// Whether the file has the evaluation (an object with a "validation_loss") of a step.
  bool has_evaluation(std::int64_t step) const { return evaluated_.contains(step); }

 private:
  std::filesystem::path path_;
  std::ofstream out_;
  std::set<std::int64_t> evaluated_;
};

/// A number for JSON: null where it is not finite, which JSON cannot say.
nlohmann::ordered_json finite_or_null(double value);

}  // namespace outeffhop
