#include "train/memory_limit.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>

#include "kernels/error.h"
#include "train/planning_device.h"
#include "train/progress.h"

namespace outeffhop {
namespace {

void require_bytes(double bytes, const ModelConfig& config, const ModelOptions& options, const Device& device) {
  const DeviceMemory memory = device.memory();
  const double limit = memory.total > 0 ? static_cast<double>(memory.available) : memory_of_machine();
  if (bytes <= limit) return;
  fail(ErrorKind::unsupported,
       "a model of {} layers, {} channels and {} token ids with {} sequences of {} tokens at a time needs {} of memory, but "
       "this {} has {}: take a smaller batch (training.micro_batch_size, evaluation.batch_size; eval: --batch-size), "
       "a shorter sequence or a smaller model{}",
       config.num_hidden_layers, config.hidden_size, config.vocab_size, options.max_batch, options.max_sequence,
       bytes_text(bytes), memory.total > 0 ? "GPU" : "machine", bytes_text(limit) + (memory.total > 0 ? " left" : ""),
       recompute_hint(options));
}

}  // namespace

std::string recompute_hint(const ModelOptions& options) {
  if (!options.training || options.recompute == Recompute::block) return "";
  return fmt::format(", or keep fewer activations (training.recompute: {}\"block\")",
                     options.recompute == Recompute::none ? "\"cheap\" or " : "");
}

double memory_of_machine() {
  double bytes = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  for (const char* file : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::ifstream in(file);
    double limit = 0.0;
    if (in >> limit && limit > 0.0) bytes = std::min(bytes, limit);  // "max" is no number
  }
  return bytes;
}

double available_memory() {
  double bytes = memory_of_machine();
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);) {  // "MemAvailable:   20971520 kB"
    double kilobytes = 0.0;
    if (std::sscanf(line.c_str(), "MemAvailable: %lf kB", &kilobytes) == 1) bytes = std::min(bytes, 1024.0 * kilobytes);
  }
  return bytes;
}

std::size_t resident_memory() {
  std::ifstream in("/proc/self/statm");
  std::size_t virtual_pages = 0, resident_pages = 0;
  in >> virtual_pages >> resident_pages;
  return resident_pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

void require_memory(const ModelConfig& config, const ModelOptions& options, const Device& device,
                    std::int64_t state_values) {
  // A lower bound in floating point first: the plan counts in integers, which larger sizes would overflow.
  const double tokens = static_cast<double>(options.max_batch) * static_cast<double>(options.max_sequence);
  const double kept_layers = options.training ? static_cast<double>(config.num_hidden_layers) : 1.0;
  const double state = static_cast<double>(state_values) * sizeof(float);
  require_bytes(parameter_estimate(config) * (sizeof(float) + state) + tokens * static_cast<double>(config.hidden_size) *
                                                                           kept_layers *
                                                                           static_cast<double>(size_of(options.dtype)),
                config, options, device);
  const auto planning_device = make_planning_device({device.memory().total > 0 ? "cuda" : "cpu"});
  const auto model = make_model(config, options, *planning_device);
  const MemoryPlan plan = model->memory();
  require_bytes(
      static_cast<double>(plan.master_weights + plan.storage_weights + plan.gradients + plan.activations + plan.workspace) +
          static_cast<double>(model->parameters().flat_size()) * state,
      config, options, device);
}

}  // namespace outeffhop
