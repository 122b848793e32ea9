#include "train/step_report.h"

#include "kernels/error.h"
#include "train/metrics.h"

namespace outeffhop {

std::string skip_text(const FinishedStep& step) {
  const TrainerState& state = step.state;
  const StepControl& control = step.control;
  const std::int64_t last_sample = state.samples - 1;
  if (control.skip == kSkipSpike) {
    return fmt::format("step {} skipped as a spike: loss {} (z {:.1f}), gradient norm {} (z {:.1f}); samples {} to {}",
                       state.step, control.loss, step.zscores.loss, control.gradient_norm, step.zscores.gradient_norm,
                       step.first_sample, last_sample);
  }
  if (control.skip == kSkipNoLabels) {
    return fmt::format("step {} skipped: samples {} to {} have no token to predict", state.step, step.first_sample,
                       last_sample);
  }
  return fmt::format("step {} skipped: loss {}, gradient norm {}; samples {} to {}", state.step, control.loss,
                     control.gradient_norm, step.first_sample, last_sample);
}

StepReport progress_report(const FinishedStep& step, std::int64_t steps) {
  const double step_seconds = step.window.seconds / static_cast<double>(step.window.steps);
  StepReport report;
  report.step = step.state.step;
  report.steps = steps;
  report.loss = step.control.loss;
  report.learning_rate = step.control.learning_rate;
  report.gradient_norm = step.control.gradient_norm;
  report.tokens_per_second = step.window.tokens_per_second();
  report.mfu = step.mfu();
  report.seconds_left = step_seconds * static_cast<double>(steps - step.state.step);
  return report;
}

nlohmann::ordered_json step_metrics(const FinishedStep& step) {
  const TrainerState& state = step.state;
  const StepControl& control = step.control;
  const StepWindow& window = step.window;
  nlohmann::ordered_json object = {{"step", state.step},
                                   {"loss", finite_or_null(control.loss)},
                                   {"learning_rate", control.learning_rate},
                                   {"gradient_norm", finite_or_null(control.gradient_norm)},
                                   {"tokens", state.tokens},
                                   {"tokens_per_second", window.tokens_per_second()},
                                   {"seconds", state.seconds},
                                   {"loading_share", window.loading_seconds / window.seconds},
                                   {"skipped", control.skip != 0}};
  if (step.peak_flops > 0.0) object["mfu"] = step.mfu();
  if (control.skip) {
    object["skip_reason"] = control.skip == kSkipSpike      ? "spike"
                            : control.skip == kSkipNoLabels ? "no labels"
                                                            : "not finite";
    object["samples"] = {step.first_sample, state.samples - 1};
  }
  if (control.skip == kSkipSpike) {
    object["loss_zscore"] = step.zscores.loss;
    object["gradient_norm_zscore"] = step.zscores.gradient_norm;
  }
  return object;
}

}  // namespace outeffhop
