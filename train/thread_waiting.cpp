#include "train/thread_waiting.h"

#include <unistd.h>

#include <cstdlib>

namespace outeffhop {

void wait_briefly_for_threads(char** argv) {
  if (std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY")) return;
  if (setenv("GOMP_SPINCOUNT", "2000", 0) != 0) return;
  execv("/proc/self/exe", argv);
}

}  // namespace outeffhop
