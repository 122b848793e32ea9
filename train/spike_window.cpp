#include "train/spike_window.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/error.h"

namespace outeffhop {
namespace {

struct Spread {
  double mean = 0.0, deviation = 0.0;
};

/// Mean and sample standard deviation, the latter from below as SpikeWindow says.
Spread spread_of(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  double sum = 0.0, squares = 0.0;
  for (const double value : values) sum += value / count;  // divided first: no sum of finite values overflows
  for (const double value : values) squares += (value - sum) * (value - sum);
  return {sum, std::max({std::sqrt(squares / (count - 1.0)), 0.01 * std::abs(sum), 1e-6})};
}

}  // namespace

SpikeWindow::SpikeWindow(double zscore, std::int64_t size) : zscore_(zscore), size_(static_cast<std::size_t>(size)) {
  require(size >= 2, "a window of {} steps has no standard deviation", size);
}

StepLimits SpikeWindow::limits() const {
  if (!full()) return {};
  const Spread loss = spread_of(history_.losses), norm = spread_of(history_.gradient_norms);
  return {loss.mean + zscore_ * loss.deviation, norm.mean + zscore_ * norm.deviation};
}

StepZscores SpikeWindow::zscores(double loss, double gradient_norm) const {
  if (!full()) return {};
  const Spread losses = spread_of(history_.losses), norms = spread_of(history_.gradient_norms);
  return {(loss - losses.mean) / losses.deviation, (gradient_norm - norms.mean) / norms.deviation};
}

void SpikeWindow::add(double loss, double gradient_norm) {
  if (zscore_ <= 0.0) return;
  for (const auto& [values, value] :
       {std::pair(&history_.losses, loss), std::pair(&history_.gradient_norms, gradient_norm)}) {
    values->reserve(size_ + 1);
    values->push_back(value);
    if (values->size() > size_) values->erase(values->begin());
  }
}

void SpikeWindow::restore(const SpikeHistory& history) {
  require(history.losses.size() == history.gradient_norms.size(), "a spike history of {} losses and {} gradient norms",
          history.losses.size(), history.gradient_norms.size());
  history_ = {};
  for (std::size_t i = 0; i < history.losses.size(); ++i) add(history.losses[i], history.gradient_norms[i]);
}

}  // namespace outeffhop
