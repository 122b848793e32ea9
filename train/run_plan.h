// What a run will be: parameters, FLOPs, memory, steps and tokens to come, and how long they take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "data/objective.h"
#include "data/sampler.h"
#include "data/shards.h"
#include "kernels/device.h"
#include "model/model.h"
#include "train/config.h"
#include "train/device_batch.h"
#include "train/flops.h"

namespace outeffhop {

/// "CPU, 2 threads, ... (auto: why)".
std::string device_text(const Device& device, const DeviceChoice& choice);

/// What a plan is made from; all of it must outlive the plan. `config` is resolved.
struct RunInputs {
  const Config& config;
  const ShardSet& shards;
  const Sampler& sampler;
  const Objective& objective;
};

/// Memory of one kind.
struct MemoryPart {
  std::string name;
  std::size_t bytes = 0;
};

/// What a run takes of the device's memory and of the host's. A device without memory of its own takes the host's.
struct RunMemory {
  std::vector<MemoryPart> device, host;
};

std::size_t total_bytes(const std::vector<MemoryPart>& parts);

/// The memory of a training run of `model`: what it planned itself, moments, the snapshot of checkpoints, batches on the
/// device and ahead of it, what ops on the device have to work in (so far: they may take more in the first step), and
/// `program`, which was measured: code and libraries, what they keep, and on a CPU what ops work in, if a step was done
/// before. All of it is taken before the first step ends. Not among it are the shards, which are mapped: the system may drop
/// their pages at any time.
RunMemory plan_memory(const RunInputs& inputs, const Model& model, const DeviceBatch& device_batch, const Device& device,
                      std::size_t program);

/// Batches that the loader of a run prepares ahead.
std::size_t loader_depth(const Config& config);

/// "memory      1.2 GB: master weights 438 MB, ...", and another such line of the host's where the device has its own.
std::vector<std::string> memory_lines(const RunMemory& memory, const Device& device);

/// The work of one sequence. Of windows it follows from their length, with labels at their expected share (as if no token
/// were special); of documents it is the mean of the first rows of the run, as many as kCountedRows.
PassWork work_of_sequence(const RunInputs& inputs);
constexpr std::int64_t kCountedRows = 256;

/// FLOPs of training on one token that is no padding.
double flops_per_token(const RunInputs& inputs);

/// Model, data and length of the run on `device`; a run that goes on after `done` steps says what remains.
std::vector<std::string> plan_lines(const RunInputs& inputs, const Model& model, const Device& device, std::int64_t done);

/// How long a step takes.
struct StepTiming {
  double seconds = 0.0;  ///< of a whole step
  double flops_per_second = 0.0;
  double mfu = 0.0;                ///< share of the device's peak; 0: unknown
  double tokens_per_second = 0.0;  ///< without padding
  std::string measured;            ///< what was, for people: "one step after one to warm up"
};

/// Makes the model with random weights on `device` and times it on the run's own first samples: on a processor a step
/// to warm up and one more, on a GPU several. Of a step longer than a few seconds it times part: one micro-batch of several,
/// or fewer sequences at a time.
StepTiming time_step(const RunInputs& inputs, const ModelOptions& options, Device& device);

/// "1.3 s a step (4,100 tokens/s, ...): about 3:20:10 for 9,000 steps".
std::string time_text(const StepTiming& timing, std::int64_t steps);

}  // namespace outeffhop
