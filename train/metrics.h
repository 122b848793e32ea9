// metrics.jsonl: one JSON object a logged step or evaluation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "train/outliers.h"

namespace outeffhop {

/// The file, and the lines that a full disk has not taken yet: training does not end for them.
class MetricsFile {
 public:
  /// Opens the file to append, keeping only the objects of steps up to `last_step`: what a continued run will do again is
  /// cut off, as is a line that a crash left unfinished. 0 starts an empty file. Throws Error(io).
  MetricsFile(const std::filesystem::path& path, std::int64_t last_step);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  /// Appends one object (with a "step") as a line, at once visible to readers. Where that fails the line waits in memory for
  /// the next write() or flush(), and trouble() says why.
  void write(const nlohmann::ordered_json& object);

  /// Tries again to write the lines that wait.
  void flush();

  /// Why lines wait; "" while none do.
  const std::string& trouble() const { return trouble_; }

  /// Throws Error(io) when lines still cannot be written.
  void finish();

  /// Whether the file has the evaluation (an object with a "validation_loss") of a step.
  bool has_evaluation(std::int64_t step) const { return evaluated_.contains(step); }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::string waiting_;  // what of the lines so far is not in the file: it may begin inside a line
  std::string trouble_;
  std::set<std::int64_t> evaluated_;
};

/// A number for JSON: null where it is not finite, which JSON cannot say.
nlohmann::ordered_json finite_or_null(double value);

/// What an evaluation's line says of outliers: {"max_inf_norm", "average_kurtosis", "outliers": {module: inf norm}}, the modules
/// being what each layer adds to the residual stream last (the feed-forward output) and the stream after it.
nlohmann::ordered_json outlier_metrics(const OutlierVisitor& visitor);

}  // namespace outeffhop
