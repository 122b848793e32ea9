// Which losses and gradient norms are out of all proportion to those just before: z-scores over a sliding window.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace outeffhop {

/// What a step may not exceed.
struct StepLimits {
  double loss = std::numeric_limits<double>::infinity();
  double gradient_norm = std::numeric_limits<double>::infinity();
};

/// How far a step lies above the window, in standard deviations; 0 where the window is not full.
struct StepZscores {
  double loss = 0.0;
  double gradient_norm = 0.0;
};

/// What a checkpoint keeps of a SpikeWindow: the steps in it, oldest first.
struct SpikeHistory {
  std::vector<double> losses, gradient_norms;
};

/// The last `size` good steps. Mean and standard deviation are computed anew from them, in two passes, whenever they are asked
/// for: nothing drifts over a long run, and a resumed run has the same limits to the bit.
///
/// A standard deviation counts as at least 1 % of the mean's magnitude (and 1e-6): where the values of the window are all but
/// equal, the next one is no spike for being a little larger.
class SpikeWindow {
 public:
  /// `zscore`: standard deviations above the mean from which a step is a spike; 0: there are no spikes, and nothing is kept.
  SpikeWindow(double zscore, std::int64_t size);

  /// Infinite until the window is full.
  StepLimits limits() const;
  StepZscores zscores(double loss, double gradient_norm) const;

  /// Adds a good step, in place of the oldest once the window is full.
  void add(double loss, double gradient_norm);

  const SpikeHistory& history() const { return history_; }
  /// Takes up what an earlier process saw, the newest of it where it is too much; both lists are equally long.
  void restore(const SpikeHistory& history);

 private:
  bool full() const { return zscore_ > 0.0 && history_.losses.size() == size_; }

  double zscore_;
  std::size_t size_;
  SpikeHistory history_;
};

}  // namespace outeffhop
