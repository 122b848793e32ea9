// Where the calls of NCCL's ranks meet: what they have to agree in, when they are done, and doing them.
#include <fmt/format.h>

#include <cstring>
#include <set>

#include "tests/simt/nccl.h"
#include "tests/simt/nccl_arithmetic.h"
#include "tests/simt/nccl_state.h"

namespace outeffhop::simt {
namespace {

std::chrono::milliseconds patience{20000};

std::string list(const std::vector<int>& ranks) {
  return fmt::format("{} {}", ranks.size() == 1 ? "rank" : "ranks", fmt::join(ranks, ", "));
}

const char* name_of(CallKind kind) {
  constexpr const char* kNames[] = {"ncclAllReduce", "ncclReduceScatter", "ncclAllGather",
                                    "ncclBroadcast", "ncclSend",          "ncclRecv"};
  return kNames[static_cast<int>(kind)];
}

bool reduces(CallKind kind) { return kind == CallKind::all_reduce || kind == CallKind::reduce_scatter; }
bool is_pair(CallKind kind) { return kind == CallKind::send || kind == CallKind::receive; }

bool agree(const RankCall& a, const RankCall& b) {
  if (a.count != b.count || a.type != b.type) return false;
  if (is_pair(a.kind)) return true;  // a send and its receive
  return a.kind == b.kind && (!reduces(a.kind) || a.operation == b.operation) &&
         (a.kind != CallKind::broadcast || a.partner == b.partner);
}

/// Bytes that a rank reads and writes.
std::pair<std::size_t, std::size_t> extent(const RankCall& call, int ranks, int rank) {
  const std::size_t bytes = call.count * size_of(call.type), all = bytes * static_cast<std::size_t>(ranks);
  switch (call.kind) {
    case CallKind::all_reduce:
      return {bytes, bytes};
    case CallKind::reduce_scatter:
      return {all, bytes};
    case CallKind::all_gather:
      return {bytes, all};
    case CallKind::broadcast:
      return {call.partner == rank ? bytes : 0, bytes};
    case CallKind::send:
      return {bytes, 0};
    case CallKind::receive:
      return {0, bytes};
  }
  return {};
}

/// Where in the larger buffer the smaller one has to lie for an operation in place.
bool in_place(const RankCall& call, int rank) {
  const std::size_t offset = static_cast<std::size_t>(rank) * call.count * size_of(call.type);
  const auto *from = static_cast<const std::byte*>(call.from), *to = static_cast<const std::byte*>(call.to);
  if (call.kind == CallKind::reduce_scatter) return to == from + offset;
  if (call.kind == CallKind::all_gather) return from == to + offset;
  return from == to;
}

[[noreturn]] void give_up(const std::string& why) {
  drop_all();
  throw Violation(why);
}

void perform(Meeting& meeting) {
  const std::size_t places = meeting.ranks.size();
  std::vector<std::vector<std::byte>> read;
  for (std::size_t i = 0; i < places; ++i) {
    const RankCall& call = *meeting.calls[i];
    for (const MemoryUse& use : call.uses) use.require_alive();
    const auto* from = static_cast<const std::byte*>(call.from);
    const std::size_t bytes = extent(call, static_cast<int>(places), meeting.ranks[i]).first;
    read.emplace_back(from, from + bytes);
  }
  const RankCall& first = *meeting.calls[0];
  std::vector<std::byte> result;
  if (reduces(first.kind))
    result = reduced(read, first.type, first.operation);
  else
    for (const auto& part : read) result.insert(result.end(), part.begin(), part.end());
  for (std::size_t i = 0; i < places; ++i) {
    const RankCall& call = *meeting.calls[i];
    const std::size_t bytes = extent(call, static_cast<int>(places), meeting.ranks[i]).second;
    const std::size_t begin = call.kind == CallKind::reduce_scatter ? i * bytes : 0;
    if (bytes) std::memcpy(call.to, result.data() + begin, bytes);
  }
  meeting.done = true;
}

/// Whether all have come; with `wait`, waits for them.
bool all_came(const Meeting& meeting, const Clique& clique, bool wait, const Node* self) {
  if (meeting.complete()) return true;
  if (!wait) return false;
  const auto why = [&] {
    std::vector<int> missing;
    const RankCall* waiting = nullptr;
    int waiting_rank = 0;
    for (std::size_t i = 0; i < meeting.ranks.size(); ++i) {
      if (!meeting.calls[i]) missing.push_back(meeting.ranks[i]);
      if (meeting.calls[i] && !waiting) {
        waiting = &*meeting.calls[i];
        waiting_rank = meeting.ranks[i];
      }
    }
    return fmt::format("{} waits for {}", describe(*waiting, waiting_rank), list(missing));
  };
  const auto hopeless = [&] {
    for (std::size_t i = 0; i < meeting.ranks.size(); ++i)
      if (!meeting.calls[i] && !clique.members[static_cast<std::size_t>(meeting.ranks[i])]) return true;
    return clique.threads.size() == 1;
  };
  if (hopeless()) give_up(why() + ", which will never call");
  const bool came = wait_for_ranks([&] { return meeting.complete() || !meeting.broken.empty() || self->done; });
  if (!meeting.broken.empty()) throw Violation(meeting.broken);
  if (self->done) throw Violation(why() + ": its work was dropped, as that of another thread failed");
  if (!came) give_up(why() + fmt::format(", for more than {} ms", patience.count()));
  return true;
}

/// Puts a call where it belongs, with the nodes of its stream.
MeetingPtr join(Communicator& communicator, const RankCall& call, const NodePtr& arrival, const NodePtr& completion) {
  Clique& clique = *communicator.clique;
  const int rank = communicator.rank;
  std::vector<int> ranks;
  std::tuple<int, int, unsigned long long> key;
  if (call.kind == CallKind::send) {
    key = {rank, call.partner, communicator.sends[call.partner]++};
    ranks = {rank, call.partner};
  } else if (call.kind == CallKind::receive) {
    key = {call.partner, rank, communicator.receives[call.partner]++};
    ranks = {call.partner, rank};
  } else {
    key = {-1, -1, communicator.collectives++};
    for (int r = 0; r < clique.ranks; ++r) ranks.push_back(r);
  }
  MeetingPtr& place = clique.open[key];
  if (!place) {
    place = std::make_shared<Meeting>();
    place->ranks = ranks;
    place->calls.resize(ranks.size());
  }
  const MeetingPtr meeting = place;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (!meeting->calls[i] || agree(*meeting->calls[i], call)) continue;
    meeting->broken = fmt::format("{}, but {}", describe(call, rank), describe(*meeting->calls[i], ranks[i]));
    give_up(meeting->broken);
  }
  for (std::size_t i = 0; i < ranks.size(); ++i)
    if (call.kind == CallKind::receive ? i == 1 : ranks[i] == rank) {
      meeting->calls[i] = call;
      break;
    }
  meeting->arrivals.push_back(arrival);
  meeting->completions.push_back(completion);
  if (meeting->complete()) {
    for (const auto& each : meeting->completions)
      if (const NodePtr node = each.lock(); node && !node->done)
        node->after.insert(node->after.end(), meeting->arrivals.begin(), meeting->arrivals.end());
    clique.open.erase(key);
  }
  return meeting;
}

void forget_calls();

/// All that there are.
std::set<Clique*>& cliques() {
  // Never destroyed: a communicator that is not destroyed lives as long as the program.
  static std::set<Clique*>& all = *[] {
    runtime().when_dropped.push_back(forget_calls);
    return new std::set<Clique*>;
  }();
  return all;
}

/// When all work is dropped: ranks begin to count anew.
void forget_calls() {
  for (Clique* clique : cliques()) {
    clique->open.clear();
    for (Communicator* member : clique->members) {
      if (!member) continue;
      member->collectives = 0;
      member->sends.clear();
      member->receives.clear();
    }
  }
}

}  // namespace

Clique::Clique(int count) : ranks(count), members(static_cast<std::size_t>(count)) { cliques().insert(this); }
Clique::~Clique() { cliques().erase(this); }

void set_rank_patience(std::chrono::milliseconds for_how_long) {
  const std::lock_guard lock(runtime().mutex);
  patience = for_how_long;
}
std::chrono::milliseconds rank_patience() { return patience; }

std::string describe(const RankCall& call, int rank) {
  std::string text = fmt::format("rank {} calls {} of {} {}", rank, name_of(call.kind), call.count, name_of(call.type));
  if (reduces(call.kind)) text += fmt::format(", {}", name_of(call.operation));
  if (call.kind == CallKind::broadcast) text += fmt::format(", root {}", call.partner);
  if (is_pair(call.kind)) text += fmt::format(", peer {}", call.partner);
  return text;
}

void note_buffers(RankCall& call, const Communicator& communicator) {
  const int rank = communicator.rank;
  const auto [reads, writes] = extent(call, communicator.clique->ranks, rank);
  const std::string who = describe(call, rank);
  if (reads) call.uses.push_back(MemoryUse::device(call.from, reads, who + ", its send buffer"));
  if (writes) call.uses.push_back(MemoryUse::device(call.to, writes, who + ", its receive buffer"));
  const auto from = reinterpret_cast<std::uintptr_t>(call.from), to = reinterpret_cast<std::uintptr_t>(call.to);
  if (reads && writes && from < to + writes && to < from + reads && !in_place(call, rank))
    throw Violation(who + ": its buffers overlap, and not as an operation in place");
}

NodePtr meet(const std::vector<PendingCall>& calls, Nodes after) {
  const NodePtr arrival = make_node(nullptr, std::move(after)), completion = make_node(nullptr, {arrival});
  auto joined = std::make_shared<std::vector<std::pair<MeetingPtr, std::shared_ptr<Clique>>>>();
  for (const PendingCall& pending : calls)
    joined->emplace_back(join(*pending.communicator, pending.call, arrival, completion), pending.communicator->clique);
  completion->complete = [joined, self = completion.get()](bool wait) {
    for (const auto& [meeting, clique] : *joined)
      if (!all_came(*meeting, *clique, wait, self)) return false;
    return true;
  };
  completion->work = [joined] {
    for (const auto& [meeting, clique] : *joined)
      if (!meeting->done) perform(*meeting);
  };
  return completion;
}

void leave(Communicator& communicator, bool aborted) {
  Clique& clique = *communicator.clique;
  clique.members[static_cast<std::size_t>(communicator.rank)] = nullptr;
  clique.aborted |= aborted;
  for (const auto& [key, meeting] : clique.open) {
    for (std::size_t i = 0; i < meeting->ranks.size(); ++i) {
      if (meeting->ranks[i] != communicator.rank) continue;
      const std::string who = meeting->calls[i] ? describe(*meeting->calls[i], communicator.rank)
                                                : fmt::format("rank {} is waited for", communicator.rank);
      if (!aborted) {
        runtime().faults.push_back(who + ", and its communicator is destroyed before all have come");
      } else {
        meeting->broken = who + ", and was aborted";
        for (const auto& each : meeting->completions) {
          const NodePtr node = each.lock();
          if (!node) continue;
          node->work = nullptr;
          node->complete = nullptr;
        }
      }
    }
  }
  if (aborted) clique.open.clear();
  runtime().changed.notify_all();
}

}  // namespace outeffhop::simt
