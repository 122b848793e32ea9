// The learning rate as a function of updates taken.
#pragma once

#include <cstdint>
#include <string>

namespace outeffhop {

struct ScheduleConfig {
  std::string type = "linear";  ///< "linear", "cosine", "constant", "wsd" (warm-up, stable, decay)
  std::int64_t warmup_steps = 0;
  double final_lr_fraction = 0.0;  ///< of the peak, reached after the last update; "constant" never leaves the peak
  std::int64_t decay_steps = 0;    ///< "wsd" only: the last updates, in which the rate falls linearly
};

/// The learning rate of the update that follows `updates` earlier ones, in a run of `steps` updates.
///
/// Warm-up is linear and reaches the peak with its last update: update u < warmup_steps has peak * (u + 1) / warmup_steps.
/// (Hugging Face's schedulers start one update earlier, with a rate of 0 that changes nothing.) Afterwards, with x running
/// from 0 to 1 over what is left, the rate goes from peak to final_lr_fraction * peak along 1 - x, a half cosine, or, for
/// "wsd", stays at the peak until decay_steps before the end. Beyond `steps` the final rate holds.
double learning_rate(const ScheduleConfig& schedule, double peak, std::int64_t steps, std::int64_t updates);

}  // namespace outeffhop
