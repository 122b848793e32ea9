#include "train/run_setup.h"

#include <algorithm>
#include <filesystem>

#include "train/files.h"
#include "train/memory_limit.h"
#include "train/planning_device.h"

namespace outeffhop {

ModelOptions model_options(const Config& config) {
  ModelOptions options;
  options.dtype = dtype_of(config.training.dtype);
  options.max_batch = config.training.micro_batch_size;
  if (!config.data.validation.empty()) options.max_batch = std::max(options.max_batch, config.evaluation.batch_size);
  options.max_sequence = config.data.sequence_length;
  options.seed = static_cast<std::uint64_t>(config.training.seed);
  options.recompute = recompute_of(config.training.recompute);
  return options;
}

DeviceOptions device_options(const TrainOptions& options, const DeviceChoice& choice, const Config& config) {
  return {choice.kind, static_cast<int>(config.training.threads), options.eager};
}

std::vector<ExtraFile> tokenizer_files(const ShardSet& shards) {
  const std::filesystem::path directory = std::filesystem::path(shards.shards().front().path()).parent_path();
  std::vector<ExtraFile> found;
  for (const char* name :
       {"merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt"}) {
    if (std::filesystem::is_regular_file(status_of(directory / name))) found.push_back({name, read_file(directory / name)});
  }
  return found;
}

ShardSet training_shards(const Config& config) {
  if (config.data.train.empty()) {
    fail(ErrorKind::usage,
         "data.train is not set: give a glob pattern of token shards, as in --set data.train='corpora/bert/*_train_*.bin'");
  }
  return ShardSet(config.data.train);
}

std::unique_ptr<Device> device_of_run(const TrainOptions& options, const DeviceChoice& choice, const Config& config) {
  if (options.dry_run) return make_planning_device(device_options(options, choice, config));
  std::unique_ptr<Device> device = make_device(device_options(options, choice, config));
  require_memory(config.model, model_options(config), *device, device->memory().total > 0 ? 2 : 2 + 3);
  return device;
}

}  // namespace outeffhop
