// How OpenMP threads wait for each other.
#pragma once

namespace outeffhop {

/// GCC's OpenMP library lets a thread that waits at the end of a parallel loop spin for milliseconds before it sleeps. On a
/// machine that runs anything else the spinning thread holds the very core that the thread it waits for needs, and a step
/// takes several times longer. The library reads its environment once, when it is loaded, so this starts the program again
/// in its place with GOMP_SPINCOUNT set to about 20 microseconds, unless GOMP_SPINCOUNT or OMP_WAIT_POLICY is set already.
/// Returns without doing anything where that is not possible: it is about speed alone.
void wait_briefly_for_threads(char** argv);

}  // namespace outeffhop
