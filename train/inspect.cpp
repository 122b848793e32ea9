#include "train/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>

#include "data/shards.h"
#include "kernels/error.h"
#include "train/files.h"

namespace outeffhop {
namespace {

namespace fs = std::filesystem;

bool holds(const fs::path& directory, const char* name) { return fs::exists(status_of(directory / name)); }

bool holds_shards(const fs::path& directory) {
  const std::vector<fs::path> entries = entries_of(directory);
  return std::any_of(entries.begin(), entries.end(), [](const fs::path& entry) { return entry.extension() == ".bin"; });
}

/// Whether a file begins as a token shard does, whatever its name.
bool begins_as_shard(const fs::path& file) {
  std::int32_t magic = 0;
  std::ifstream(file, std::ios::binary).read(reinterpret_cast<char*>(&magic), sizeof magic);
  return magic == kShardMagic;
}

void look(const std::string& path, Inspection& found) {
  const fs::file_status status = status_of(path);
  if (!fs::exists(status)) {
    if (path.find_first_of("*?[{~") != std::string::npos) return inspect_shards(path, found);
    fail(ErrorKind::io, "cannot inspect {}: there is no such file or directory", path);
  }
  if (fs::is_directory(status)) {
    if (holds(path, "checkpoints") || holds(path, "metrics.jsonl")) return inspect_run(path, found);
    for (const char* name : {"manifest.json", "trainer.json", "config.json", "model.safetensors"}) {
      if (holds(path, name)) return inspect_model_directory(path, found);
    }
    if (holds_shards(path)) return inspect_shards((fs::path(path) / "*.bin").string(), found);
  } else {
    const std::string extension = fs::path(path).extension().string();
    if (extension == ".safetensors") return inspect_safetensors(path, found);
    if (extension == ".bin" || begins_as_shard(path)) return inspect_shards(path, found);
  }
  fail(ErrorKind::usage,
       "cannot tell what {} is: inspect takes a token shard (.bin), a directory or pattern of shards, a .safetensors file, "
       "a model directory or checkpoint, or a run directory",
       path);
}

}  // namespace

void Inspection::problem(int code, const std::string& sentence) {
  if (exit_code == 0) exit_code = code;
  problems_.push_back(sentence);
}

bool Inspection::attempt(const std::function<void()>& look_at) {
  try {
    look_at();
    return true;
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::internal) throw;
    problem(static_cast<int>(e.kind() == ErrorKind::usage ? ErrorKind::checkpoint : e.kind()), e.what());
    return false;
  }
}

Inspection inspect(const std::string& path) {
  Inspection found;
  look(path, found);
  if (!found.problems_.empty()) found.facts["problems"] = found.problems_;
  return found;
}

}  // namespace outeffhop
