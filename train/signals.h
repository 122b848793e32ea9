// SIGTERM, SIGINT and SIGUSR1 (what batch systems send before the time is up): finish the step, save, leave with a code that
// means "start me again".
#pragma once

namespace outeffhop {

/// Exit code of a run that was asked to stop and can be continued (EX_TEMPFAIL of sysexits.h).
constexpr int kExitRequeue = 75;

/// While it lives, the first of these signals only raises a flag; a second one ends the process at once with 128 + signal.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  bool requested() const;
};

}  // namespace outeffhop
