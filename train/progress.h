// What a person watching a run sees.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace outeffhop {

struct StepReport {
  std::int64_t step = 0, steps = 0;
  double loss = 0.0;
  double learning_rate = 0.0;
  double gradient_norm = 0.0;
  double tokens_per_second = 0.0;
  double mfu = 0.0;  ///< share of the device's peak; 0: unknown, and not shown
  double seconds_left = 0.0;
};

/// On a terminal one line that is rewritten, a few times a second; elsewhere a plain line for each logged step.
class Progress {
 public:
  explicit Progress(bool terminal) : terminal_(terminal) {}
  ~Progress();

  void step(const StepReport& report, bool logged);
  /// A line that stays.
  void line(const std::string& text);

 private:
  void clear();

  bool terminal_, drawn_ = false;
  std::chrono::steady_clock::time_point last_{};
};

/// "1:02:03" or "2:03" or "3 s".
std::string duration_text(double seconds);

/// "109 M", "1.32 G": three significant digits.
std::string count_text(double count);

/// "109 MB", in powers of 1000.
std::string bytes_text(double bytes);

}  // namespace outeffhop
