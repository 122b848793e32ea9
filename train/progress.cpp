#include "train/progress.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>

namespace outeffhop {

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds)) return "?";
  const auto s = static_cast<std::int64_t>(std::llround(seconds));
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

std::string count_text(double count) {
  const char* const units[] = {"", " k", " M", " G", " T", " P"};
  std::size_t unit = 0;
  while (std::abs(count) >= 999.5 && unit + 1 < std::size(units)) {
    count /= 1000.0;
    ++unit;
  }
  if (unit == 0) return fmt::format("{:.0f}", count);
  return fmt::format("{:.{}f}{}", count, count < 9.995 ? 2 : count < 99.95 ? 1 : 0, units[unit]);
}

std::string bytes_text(double bytes) { return count_text(bytes) + (bytes < 999.5 ? " B" : "B"); }

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (!drawn_) return;
  std::fputs("\r\033[K", stdout);
  std::fflush(stdout);
  drawn_ = false;
}

void Progress::step(const StepReport& r, bool logged) {
  if (!terminal_ && !logged) return;
  const auto now = std::chrono::steady_clock::now();
  if (terminal_ && now - last_ < std::chrono::milliseconds(200) && r.step != r.steps) return;
  const std::string text =
      fmt::format("step {}/{}  loss {:.4f}  lr {:.3g}  gradient {:.3g}  {} tok/s{}  {} left", r.step, r.steps, r.loss,
                  r.learning_rate, r.gradient_norm, count_text(r.tokens_per_second),
                  r.mfu > 0.0 ? fmt::format("  {:.1f} % MFU", 100 * r.mfu) : "", duration_text(r.seconds_left));
  if (!terminal_) return line(text);
  last_ = now;
  std::fputs(("\r\033[K" + text).c_str(), stdout);
  std::fflush(stdout);
  drawn_ = true;
}

void Progress::line(const std::string& text) {
  clear();
  std::fputs((text + '\n').c_str(), stdout);  // a terminal that has gone must not end a run
  std::fflush(stdout);
}

}  // namespace outeffhop
