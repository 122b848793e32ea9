// NCCL's interface for ranks of one process: communicators, groups, and what each call takes.
#include "tests/simt/nccl.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "tests/simt/nccl_arithmetic.h"
#include "tests/simt/nccl_state.h"

namespace outeffhop::simt {
namespace {

/// Ids that were given out; each becomes a clique when its first rank comes.
struct Ids {
  unsigned long long given = 0;
  std::map<unsigned long long, std::weak_ptr<Clique>> cliques;
};
Ids& ids() {
  static Ids all;
  return all;
}
std::vector<std::unique_ptr<Communicator>>& communicators() {
  static std::vector<std::unique_ptr<Communicator>> all;
  return all;
}

struct Group {
  int depth = 0;
  std::vector<std::shared_ptr<Clique>> joined;  ///< by ncclCommInitRank
  std::vector<std::pair<cudaStream_t, PendingCall>> calls;
};
thread_local Group group;

template <class Call>
ncclResult_t guarded(Call&& call) {
  Runtime& state = runtime();
  std::unique_lock lock(state.mutex);
  if (!state.driver) return ncclUnhandledCudaError;
  if (state.executing) return ncclInvalidUsage;
  return call();
}

bool is_communicator(ncclComm_t communicator) { return owns(communicators(), communicator); }

void wait_for_members(const Clique& clique) {
  const auto all_joined = [&] { return static_cast<int>(clique.devices.size()) == clique.ranks; };
  if (!wait_for_ranks(all_joined))
    throw Violation(fmt::format("ncclCommInitRank: of {} ranks only {} have come in {} ms", clique.ranks,
                                clique.devices.size(), rank_patience().count()));
}

ncclResult_t join_clique(ncclComm_t* communicator, int ranks, const ncclUniqueId& id, int rank,
                         std::shared_ptr<Clique>& joined) {
  unsigned long long number;
  std::memcpy(&number, id.internal, sizeof number);
  const auto known = ids().cliques.find(number);
  if (!communicator || ranks < 1 || rank < 0 || rank >= ranks || known == ids().cliques.end()) return ncclInvalidArgument;
  joined = known->second.lock();
  if (!joined) known->second = joined = std::make_shared<Clique>(ranks);
  if (joined->ranks != ranks)
    throw Violation(fmt::format("ncclCommInitRank: rank {} of {} comes to a clique of {}", rank, ranks, joined->ranks));
  if (joined->members[static_cast<std::size_t>(rank)]) throw Violation(fmt::format("ncclCommInitRank: two ranks {}", rank));
  for (const int device : joined->devices)
    if (device == current_device) return ncclInvalidUsage;  // NCCL takes one rank a GPU
  communicators().push_back(std::make_unique<Communicator>(Communicator{joined, rank, current_device}));
  ++runtime().communicators;
  *communicator = communicators().back().get();
  joined->members[static_cast<std::size_t>(rank)] = *communicator;
  joined->devices.push_back(current_device);
  joined->threads.insert(std::this_thread::get_id());
  runtime().changed.notify_all();
  return ncclSuccess;
}

/// The calls of one stream become one node, in which they make progress together.
ncclResult_t submit_calls(const std::vector<std::pair<cudaStream_t, PendingCall>>& calls) {
  std::vector<cudaStream_t> streams;
  for (const auto& [stream, call] : calls)
    if (std::find(streams.begin(), streams.end(), stream) == streams.end()) streams.push_back(stream);
  for (const cudaStream_t stream : streams) {
    std::vector<PendingCall> together;
    for (const auto& [its_stream, call] : calls)
      if (its_stream == stream) together.push_back(call);
    const int device = together[0].communicator->device;
    Stream* on = stream ? find_stream(stream) : runtime().devices[static_cast<std::size_t>(device)].legacy.get();
    if (!on) return ncclInvalidArgument;
    const cudaError_t status = enqueue(*on, [together](Nodes after) {
      for (const PendingCall& pending : together)
        if (!is_communicator(pending.communicator)) throw Violation("a graph is replayed whose communicator was destroyed");
      return meet(together, std::move(after));
    });
    if (status != cudaSuccess) return ncclUnhandledCudaError;
  }
  return ncclSuccess;
}

ncclResult_t communicate(ncclComm_t communicator, cudaStream_t stream, RankCall call) {
  return guarded([&] {
    if (!is_communicator(communicator)) return ncclInvalidArgument;
    if (communicator->clique->aborted) return ncclRemoteError;
    const Stream* on = stream ? find_stream(stream) : nullptr;
    if (stream && (!on || on->device != communicator->device)) return ncclInvalidArgument;
    if (size_of(call.type) == 0 || !is_operation(call.operation)) return ncclInvalidArgument;
    if (call.partner < 0 || call.partner >= communicator->clique->ranks) return ncclInvalidArgument;
    try {
      note_buffers(call, *communicator);
    } catch (const Violation&) {
      group = {};
      throw;
    }
    if (call.count == 0 && call.kind != CallKind::send && call.kind != CallKind::receive) return ncclSuccess;
    group.calls.emplace_back(stream, PendingCall{communicator, std::move(call)});
    if (group.depth > 0) return ncclSuccess;
    return submit_calls(std::exchange(group.calls, {}));
  });
}

ncclResult_t depart(ncclComm_t communicator, bool aborted) {
  return guarded([&] {
    if (!is_communicator(communicator)) return ncclInvalidArgument;
    leave(*communicator, aborted);
    destroy(communicators(), communicator);
    --runtime().communicators;
    return ncclSuccess;
  });
}

template <class T>
ncclResult_t answer(ncclComm_t communicator, T* to, T (*value)(const Communicator&)) {
  return guarded([&] {
    if (!to || !is_communicator(communicator)) return ncclInvalidArgument;
    *to = value(*communicator);
    return ncclSuccess;
  });
}

}  // namespace
}  // namespace outeffhop::simt

using namespace outeffhop::simt;  // NOLINT: the API is in the global namespace

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "operation in progress";
  }
  return "unknown result code";
}
ncclResult_t ncclGetVersion(int* version) {
  if (!version) return ncclInvalidArgument;
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  return guarded([&] {
    if (!id) return ncclInvalidArgument;
    const unsigned long long number = ++ids().given;
    *id = {};
    std::memcpy(id->internal, &number, sizeof number);
    ids().cliques[number];
    return ncclSuccess;
  });
}
ncclResult_t ncclCommInitRank(ncclComm_t* communicator, int ranks, ncclUniqueId id, int rank) {
  return guarded([&] {
    std::shared_ptr<Clique> joined;
    const ncclResult_t result = join_clique(communicator, ranks, id, rank, joined);
    if (result != ncclSuccess) return result;
    if (group.depth > 0)
      group.joined.push_back(joined);
    else
      wait_for_members(*joined);
    return ncclSuccess;
  });
}
ncclResult_t ncclCommInitAll(ncclComm_t* communicators_out, int ranks, const int* devices) {
  ncclUniqueId id;
  if (!communicators_out || ranks < 1) return ncclInvalidArgument;
  if (const ncclResult_t result = ncclGetUniqueId(&id)) return result;
  const int before = current_device;
  int made = 0;
  ncclResult_t result = ncclSuccess;
  for (int rank = 0; rank < ranks && result == ncclSuccess; ++rank) {
    if (cudaSetDevice(devices ? devices[rank] : rank) != cudaSuccess) {
      result = ncclInvalidArgument;
      break;
    }
    result = guarded([&] {
      std::shared_ptr<Clique> joined;
      return join_clique(communicators_out + rank, ranks, id, rank, joined);
    });
    made += result == ncclSuccess;
  }
  if (result != ncclSuccess)
    for (int rank = 0; rank < made; ++rank) ncclCommDestroy(communicators_out[rank]);
  cudaSetDevice(before);
  return result;
}
ncclResult_t ncclCommDestroy(ncclComm_t communicator) { return depart(communicator, false); }
ncclResult_t ncclCommAbort(ncclComm_t communicator) { return depart(communicator, true); }
ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* error) {
  return answer<ncclResult_t>(communicator, error,
                              [](const Communicator& c) { return c.clique->aborted ? ncclRemoteError : ncclSuccess; });
}
ncclResult_t ncclCommCount(const ncclComm_t communicator, int* ranks) {
  return answer<int>(communicator, ranks, [](const Communicator& c) { return c.clique->ranks; });
}
ncclResult_t ncclCommCuDevice(const ncclComm_t communicator, int* device) {
  return answer<int>(communicator, device, [](const Communicator& c) { return c.device; });
}
ncclResult_t ncclCommUserRank(const ncclComm_t communicator, int* rank) {
  return answer<int>(communicator, rank, [](const Communicator& c) { return c.rank; });
}

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (group.depth == 0) return ncclInvalidUsage;
  if (--group.depth > 0) return ncclSuccess;
  const auto joined = std::exchange(group.joined, {});
  const auto calls = std::exchange(group.calls, {});
  if (!joined.empty() && !calls.empty()) return ncclInvalidUsage;  // not in one group
  return guarded([&] {
    for (const auto& clique : joined) wait_for_members(*clique);
    return submit_calls(calls);
  });
}

ncclResult_t ncclAllReduce(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t operation,
                           ncclComm_t communicator, cudaStream_t stream) {
  return communicate(communicator, stream, {CallKind::all_reduce, from, to, count, type, operation});
}
ncclResult_t ncclReduceScatter(const void* from, void* to, std::size_t received, ncclDataType_t type, ncclRedOp_t operation,
                               ncclComm_t communicator, cudaStream_t stream) {
  return communicate(communicator, stream, {CallKind::reduce_scatter, from, to, received, type, operation});
}
ncclResult_t ncclAllGather(const void* from, void* to, std::size_t sent, ncclDataType_t type, ncclComm_t communicator,
                           cudaStream_t stream) {
  return communicate(communicator, stream, {CallKind::all_gather, from, to, sent, type});
}
ncclResult_t ncclBroadcast(const void* from, void* to, std::size_t count, ncclDataType_t type, int root,
                           ncclComm_t communicator, cudaStream_t stream) {
  return communicate(communicator, stream, {CallKind::broadcast, from, to, count, type, ncclSum, root});
}
ncclResult_t ncclSend(const void* from, std::size_t count, ncclDataType_t type, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  return communicate(communicator, stream, {CallKind::send, from, nullptr, count, type, ncclSum, peer});
}
ncclResult_t ncclRecv(void* to, std::size_t count, ncclDataType_t type, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  return communicate(communicator, stream, {CallKind::receive, nullptr, to, count, type, ncclSum, peer});
}
