#include "train/metrics.h"

#include <cmath>
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
  out_.open(path, std::ios::app);
  if (!out_) fail(ErrorKind::io, "cannot append to {}", path.string());
}

void MetricsFile::write(const nlohmann::ordered_json& object) {
  out_ << object.dump() << '\n' << std::flush;
  if (!out_) fail(ErrorKind::io, "cannot append to {}: is the disk full?", path_.string());
  if (object.contains("validation_loss")) evaluated_.insert(object["step"].get<std::int64_t>());
}

nlohmann::ordered_json finite_or_null(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

}  // namespace outeffhop
