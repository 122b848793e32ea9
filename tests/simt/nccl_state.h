// What the files of the NCCL stand-in share: ranks, and calls that have to come together. Guarded by Runtime::mutex.
#pragma once

#include <nccl.h>

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "tests/simt/runtime_state.h"

namespace outeffhop::simt {

enum class CallKind { all_reduce, reduce_scatter, all_gather, broadcast, send, receive };

/// One rank's call.
struct RankCall {
  CallKind kind;
  const void* from;
  void* to;
  std::size_t count;  ///< elements, as the call takes it
  ncclDataType_t type;
  ncclRedOp_t operation = ncclSum;
  int partner = 0;                   ///< root, or the peer of a send or receive
  std::vector<MemoryUse> uses = {};  ///< of both buffers
};

/// The calls of all ranks that are one communication: as many as `calls` has places.
struct Meeting {
  std::vector<int> ranks;  ///< whose call each place is for
  std::vector<std::optional<RankCall>> calls;
  Nodes arrivals;                                ///< the ranks' streams have come to it
  std::vector<std::weak_ptr<Node>> completions;  ///< may go on when all have
  bool done = false;
  std::string broken;  ///< why it will never be done

  bool complete() const { return arrivals.size() == ranks.size(); }
};
using MeetingPtr = std::shared_ptr<Meeting>;

/// The ranks of one ncclUniqueId.
struct Clique {
  explicit Clique(int count);
  Clique(const Clique&) = delete;
  ~Clique();

  int ranks;
  std::vector<Communicator*> members;  ///< by rank; null before it came and after it left
  std::vector<int> devices = {};       ///< of those that came
  std::set<std::thread::id> threads = {};
  bool aborted = false;
  /// Open meetings: collectives by their number; sends with their receives by sender, receiver and number.
  std::map<std::tuple<int, int, unsigned long long>, MeetingPtr> open = {};
};

struct Communicator {
  std::shared_ptr<Clique> clique;
  int rank, device;
  unsigned long long collectives = 0;                           ///< calls so far
  std::map<int, unsigned long long> sends = {}, receives = {};  ///< so far, by peer
};

std::string describe(const RankCall& call, int rank);

/// Checks the buffers of a call and notes them in it.
void note_buffers(RankCall& call, const Communicator& communicator);

struct PendingCall {
  Communicator* communicator;
  RankCall call;
};
/// The node of calls that one rank, or several, make together on one stream.
NodePtr meet(const std::vector<PendingCall>& calls, Nodes after);

/// Takes a rank out; `aborted`: what it was in is given up, on all ranks.
void leave(Communicator& communicator, bool aborted);

std::chrono::milliseconds rank_patience();
/// Waits, with the runtime's mutex released, until the condition holds; false when the patience is over.
template <class Condition>
bool wait_for_ranks(Condition condition) {
  return runtime().changed.wait_for(runtime().mutex, rank_patience(), condition);
}

}  // namespace outeffhop::simt
