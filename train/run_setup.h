// What a run is made of before its first step, from its configuration.
#pragma once

#include <memory>
#include <vector>

#include "data/shards.h"
#include "kernels/device.h"
#include "model/model.h"
#include "train/checkpoint.h"
#include "train/training.h"

namespace outeffhop {

/// The model that a run trains and evaluates; `config` is resolved.
ModelOptions model_options(const Config& config);

DeviceOptions device_options(const TrainOptions& options, const DeviceChoice& choice, const Config& config);

/// The device of the run; in a dry run one that only plans, as that may be for another machine. Throws Error(unsupported)
/// where the run does not fit into memory: it keeps two moments and, in the host's memory, copies of all three for the
/// checkpoint.
std::unique_ptr<Device> device_of_run(const TrainOptions& options, const DeviceChoice& choice, const Config& config);

/// The shards that a config names. Throws Error(usage) when it names none.
ShardSet training_shards(const Config& config);

/// Files beside the shards that belong to their tokenizer: a checkpoint with them serves text, not only ids. Read once, as
/// the directory may be gone or hold another tokenizer when a later checkpoint is written.
std::vector<ExtraFile> tokenizer_files(const ShardSet& shards);

}  // namespace outeffhop
