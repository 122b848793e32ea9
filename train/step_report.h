// What is said and written of a step that was done.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "kernels/optimizer.h"
#include "train/checkpoint.h"
#include "train/progress.h"
#include "train/spike_window.h"

namespace outeffhop {

/// The steps since the last one that was logged.
struct StepWindow {
  double seconds = 0.0;
  double loading_seconds = 0.0;  ///< of those, spent waiting for the loader
  std::int64_t steps = 0, tokens = 0;
  double flops = 0.0;  ///< what its batches needed: training_flops()

  double tokens_per_second() const { return static_cast<double>(tokens) / seconds; }
};

/// A step, the last of `window`. What it refers to must outlive it.
struct FinishedStep {
  const TrainerState& state;  ///< after the step
  const StepControl& control;
  const StepWindow& window;
  StepZscores zscores;        ///< of its loss and gradient norm
  std::int64_t first_sample;  ///< of the samples that it read, up to state.samples - 1
  double peak_flops = 0.0;    ///< of the device, a second; 0: unknown

  /// The share of the device's peak that the window's FLOPs took; 0 where the peak is unknown.
  double mfu() const { return peak_flops > 0.0 ? window.flops / window.seconds / peak_flops : 0.0; }
};

/// Why the step was skipped, with the samples that it read: "step 12 skipped: loss nan, ...". Only of one that was.
std::string skip_text(const FinishedStep& step);

/// What the line that shows the progress of a run of `steps` steps says.
StepReport progress_report(const FinishedStep& step, std::int64_t steps);

/// The step's object in metrics.jsonl. It has "mfu" where the peak is known.
nlohmann::ordered_json step_metrics(const FinishedStep& step);

}  // namespace outeffhop
