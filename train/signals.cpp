#include "train/signals.h"

#include <unistd.h>

#include <csignal>

namespace outeffhop {
namespace {

constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1};

// A signal handler can reach nothing but static data: the one exception to "no globals".
volatile std::sig_atomic_t stop_requested = 0;

extern "C" void handle_stop(int signal) {
  if (stop_requested) _exit(128 + signal);
  stop_requested = 1;
}

}  // namespace

StopSignals::StopSignals() {
  stop_requested = 0;
  struct sigaction action {};
  action.sa_handler = handle_stop;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int signal : kSignals) sigaction(signal, &action, nullptr);
}

StopSignals::~StopSignals() {
  for (const int signal : kSignals) std::signal(signal, SIG_DFL);
}

bool StopSignals::requested() const { return stop_requested != 0; }

}  // namespace outeffhop
