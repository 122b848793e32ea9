#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <sstream>

#include "kernels/error.h"
#include "train/files.h"

namespace outeffhop {

MetricsFile::MetricsFile(const std::filesystem::path& path, std::int64_t last_step) : path_(path) {
  std::string kept;
  if (last_step > 0 && std::filesystem::exists(status_of(path))) {
    std::istringstream lines(read_file(path));
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
      if (object.is_discarded() || !object.is_object() || !object.contains("step") || !object["step"].is_number_integer())
        continue;
      const auto step = object["step"].get<std::int64_t>();
      if (step > last_step) continue;
      kept += line + '\n';
      if (object.contains("validation_loss")) evaluated_.insert(step);
    }
  }
  replace_file(path, kept);
  descriptor_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (descriptor_ < 0) fail(ErrorKind::io, "cannot append to {}: {}", path.string(), std::strerror(errno));
}

MetricsFile::~MetricsFile() { ::close(descriptor_); }

void MetricsFile::write(const nlohmann::ordered_json& object) {
  waiting_ += object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n';
  if (object.contains("validation_loss")) evaluated_.insert(object["step"].get<std::int64_t>());
  flush();
}

void MetricsFile::flush() {
  while (!waiting_.empty()) {
    const ssize_t written = ::write(descriptor_, waiting_.data(), waiting_.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      trouble_ = fmt::format("cannot append to {}: {}", path_.string(), std::strerror(errno));
      return;
    }
    waiting_.erase(0, static_cast<std::size_t>(written));
  }
  trouble_.clear();
}

void MetricsFile::finish() {
  flush();
  if (!trouble_.empty()) fail(ErrorKind::io, "{}; the lines of the last steps are lost", trouble_);
}

nlohmann::ordered_json finite_or_null(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json outlier_metrics(const OutlierVisitor& visitor) {
  const OutlierSummary summary = visitor.summary();
  nlohmann::ordered_json norms = nlohmann::ordered_json::object();
  for (const OutlierModule& module : visitor.modules()) {
    const bool of_layer_output = module.group == OutlierGroup::ffn_output || module.group == OutlierGroup::layernorm_input ||
                                 module.group == OutlierGroup::layer_output;
    if (of_layer_output) norms[module.label()] = finite_or_null(module.inf_norm());
  }
  return {{"max_inf_norm", finite_or_null(summary.max_inf_norm)},
          {"average_kurtosis", finite_or_null(summary.average_kurtosis)},
          {"outliers", norms}};
}

}  // namespace outeffhop
