// A training run from its configuration to its last checkpoint.
#pragma once

#include <cstdint>
#include <string>

#include "train/config.h"

namespace outeffhop {

struct TrainOptions {
  Config config;  ///< as load_config() gives it; the data resolves what is still "auto"
  std::string device = "auto";
  std::string resume = "auto";  ///< "auto": the run's newest sound checkpoint, if there is any; "never"; or a directory
  std::int64_t stop_after = 0;  ///< steps of this invocation, after which it saves and stops; 0: none
  bool dry_run = false;         ///< print what would be trained, and do nothing
  bool quiet = false;           ///< print nothing
  bool eager = false;           ///< DeviceOptions::eager
};

/// Trains, and returns the exit code: 0, or kExitRequeue after SIGTERM, SIGINT or SIGUSR1. Throws Error.
int train(const TrainOptions& options);

}  // namespace outeffhop
