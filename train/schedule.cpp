#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/error.h"

namespace outeffhop {

double learning_rate(const ScheduleConfig& schedule, double peak, std::int64_t steps, std::int64_t updates) {
  if (updates < schedule.warmup_steps) {
    return peak * static_cast<double>(updates + 1) / static_cast<double>(schedule.warmup_steps);
  }
  if (schedule.type == "constant") return peak;

  const std::int64_t decay_begin =
      schedule.type == "wsd" ? std::max(schedule.warmup_steps, steps - schedule.decay_steps) : schedule.warmup_steps;
  const auto span = static_cast<double>(std::max<std::int64_t>(1, steps - decay_begin));
  const double x = std::clamp(static_cast<double>(updates - decay_begin) / span, 0.0, 1.0);

  double height = 0.0;  // 1 at the peak, 0 at the end
  if (schedule.type == "linear" || schedule.type == "wsd") {
    height = 1.0 - x;
  } else if (schedule.type == "cosine") {
    height = 0.5 * (1.0 + std::cos(std::numbers::pi * x));
  } else {
    require(false, "schedule \"{}\" is not known to learning_rate()", schedule.type);
  }
  return peak * (schedule.final_lr_fraction + (1.0 - schedule.final_lr_fraction) * height);
}

}  // namespace outeffhop
