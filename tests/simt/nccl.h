// What tests ask of the stand-in for NCCL (overlay/nccl.h) beyond its own interface.
//
// All ranks are in one process: on one thread, which makes their calls between ncclGroupStart and ncclGroupEnd or one after
// the other on their streams, or each on its own. A call is work of its stream. It is done when the call of each rank has
// its turn in its stream; reductions go in rank order, so that results do not depend on threads. Violations:
//   - ranks whose n-th calls differ in operation, count, type, reduction or root: it names both;
//   - buffers that do not lie in one live allocation of a device, or overlap in another way than NCCL's in-place one;
//   - a rank that is waited for and never comes: at once where one thread makes all calls, or the rank is gone; else when
//     the patience is over;
//   - sends and receives that wait for each other, as they are not in one group;
//   - a communicator that is destroyed while others wait in it.
#pragma once

#include <chrono>

namespace outeffhop::simt {

/// How long a thread waits for other ranks' threads. At start: 20 s.
void set_rank_patience(std::chrono::milliseconds patience);

}  // namespace outeffhop::simt
