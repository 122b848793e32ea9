// Memory of the runtime stand-in: allocations, copies and fills.
#include <fmt/format.h>

#include <cstring>
#include <new>
#include <optional>

#include "tests/simt/runtime_state.h"

namespace outeffhop::simt {
namespace {

constexpr std::align_val_t kAlignment{256};
// A NaN as fp32 and as bf16, and 1e308 as fp64; the executor's shared memory has the same.
constexpr unsigned char kPoison[2] = {0xed, 0x7f};

// AddressSanitizer watches both sides of an allocation, and what was freed, by itself.
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kGuard = 0, kKeptFreed = 0;
#else
constexpr std::size_t kGuard = 256, kKeptFreed = std::size_t{8} << 20;
#endif

void poison(void* data, std::size_t bytes) {
  auto* to = static_cast<unsigned char*>(data);
  for (std::size_t i = 0; i < bytes; ++i) to[i] = kPoison[i % 2];
}
/// The first byte that is not as poison() left it.
std::optional<std::size_t> touched(const std::byte* data, std::size_t begin, std::size_t end) {
  for (std::size_t i = begin; i < end; ++i)
    if (static_cast<unsigned char>(data[i]) != kPoison[i % 2]) return i;
  return std::nullopt;
}

std::string name(const Allocation& allocation) {
  return fmt::format("allocation {} of {} bytes of {} memory", allocation.number, allocation.bytes,
                     allocation.pinned ? "pinned" : "device");
}

void check_guard(const std::byte* data, const Allocation& allocation) {
  if (const auto at = touched(data, allocation.bytes, allocation.bytes + kGuard))
    runtime().faults.push_back(
        fmt::format("something was written {} bytes behind the end of {}", *at - allocation.bytes, name(allocation)));
}
void check_freed(const Freed& freed) {
  if (const auto at = touched(freed.data, 0, freed.allocation.bytes))
    runtime().faults.push_back(fmt::format("byte {} of {} was written after it was freed", *at, name(freed.allocation)));
}

void keep_freed(std::byte* data, const Allocation& allocation) {
  check_guard(data, allocation);
  poison(data, allocation.bytes);
  Runtime& state = runtime();
  state.freed.push_back({data, allocation});
  state.freed_bytes += allocation.bytes;
  while (state.freed_bytes > kKeptFreed) {
    const Freed oldest = state.freed.front();
    state.freed.pop_front();
    state.freed_bytes -= oldest.allocation.bytes;
    check_freed(oldest);
    ::operator delete(oldest.data, kAlignment);
  }
}

cudaError_t allocate(void** data, std::size_t bytes, bool pinned) {
  return api([&] {
    if (!data) return cudaErrorInvalidValue;
    if (const cudaError_t refused = refuse_unsafe()) return refused;
    *data = nullptr;
    if (bytes == 0) return cudaSuccess;
    DeviceState& device = runtime().current();
    if (!pinned && (bytes > device.total || device.used > device.total - bytes)) return cudaErrorMemoryAllocation;
    void* made = ::operator new(bytes + kGuard, kAlignment, std::nothrow);
    if (!made) return cudaErrorMemoryAllocation;
    poison(made, bytes + kGuard);
    if (!pinned) device.used += bytes;
    runtime().allocations[reinterpret_cast<std::uintptr_t>(made)] = {bytes, pinned, current_device,
                                                                     ++runtime().allocations_made};
    *data = made;
    return cudaSuccess;
  });
}

using Entry = std::map<std::uintptr_t, Allocation>::iterator;

void release(Entry entry) {
  Runtime& state = runtime();
  const Allocation allocation = entry->second;
  if (!allocation.pinned) state.devices[static_cast<std::size_t>(allocation.device)].used -= allocation.bytes;
  auto* data = reinterpret_cast<std::byte*>(entry->first);
  state.allocations.erase(entry);
  keep_freed(data, allocation);
}

cudaError_t release(void* data, bool pinned) {
  return api([&] {
    if (const cudaError_t refused = refuse_unsafe()) return refused;
    if (!data) return cudaSuccess;
    Runtime& state = runtime();
    const auto found = state.allocations.find(reinterpret_cast<std::uintptr_t>(data));
    if (found == state.allocations.end() || found->second.pinned != pinned) {
      state.faults.push_back(fmt::format("{}({}), which is no begin of live {} memory", pinned ? "cudaFreeHost" : "cudaFree",
                                         data, pinned ? "pinned" : "device"));
      return cudaErrorInvalidValue;
    }
    // cudaFree waits for the device; cudaFreeHost is not said to.
    if (!pinned) {
      try {
        run_device(found->second.device);
      } catch (const std::exception& failure) {
        state.faults.push_back(failure.what());
      }
    }
    release(found);
    return cudaSuccess;
  });
}

/// The live allocation that begins at or before `data`, if it ends at or behind it.
Entry find_allocation(const void* data) {
  Runtime& state = runtime();
  const auto at = reinterpret_cast<std::uintptr_t>(data);
  auto after = state.allocations.upper_bound(at);
  if (after == state.allocations.begin()) return state.allocations.end();
  --after;
  return at <= after->first + after->second.bytes ? after : state.allocations.end();
}

/// The allocation that [data, data + bytes) lies in, which has to be one; none where it does not touch any.
Entry find_range(const void* data, std::size_t bytes, const std::string& what) {
  Runtime& state = runtime();
  const auto begin = reinterpret_cast<std::uintptr_t>(data), end = begin + bytes;
  const auto last = state.allocations.lower_bound(end);  // the first that begins at the end or behind
  if (last == state.allocations.begin()) return state.allocations.end();
  const auto entry = std::prev(last);
  if (entry->first + entry->second.bytes <= begin) return state.allocations.end();
  if (begin < entry->first)
    throw Violation(
        fmt::format("{}: {} bytes begin {} bytes before {}", what, bytes, entry->first - begin, name(entry->second)));
  if (end > entry->first + entry->second.bytes)
    throw Violation(fmt::format("{}: {} bytes from byte {} on do not fit into {}", what, bytes, begin - entry->first,
                                name(entry->second)));
  return entry;
}

/// Counts as a pending read of a pinned allocation as long as it lives.
class PendingRead {
 public:
  explicit PendingRead(const Allocation& allocation) : number_(allocation.number) { count(1); }
  PendingRead(const PendingRead&) = delete;
  ~PendingRead() { count(-1); }

 private:
  void count(int by) const {
    for (auto& [begin, allocation] : runtime().allocations)
      if (allocation.number == number_) allocation.pending_reads += by;
  }
  unsigned long long number_;
};

enum class Side { device, pinned, pageable };

struct Range {
  Side side;
  std::optional<MemoryUse> use = std::nullopt;
  Allocation* allocation = nullptr;
};

Range look_up(const void* data, std::size_t bytes, bool expect_device, bool expect_host, const std::string& what) {
  const Entry entry = find_range(data, bytes, what);
  if (entry == runtime().allocations.end()) {
    if (expect_device) MemoryUse::device(data, bytes, what);  // throws
    return {Side::pageable};
  }
  if (entry->second.pinned && expect_device) throw Violation(what + ": is pinned host memory, not the device's");
  if (!entry->second.pinned && expect_host) throw Violation(what + ": is memory of the device, not the host's");
  return {entry->second.pinned ? Side::pinned : Side::device, MemoryUse::argument(data, what), &entry->second};
}

/// Whether the host has to wait until the copy has run.
enum class Wait { as_documented_for_async, always_but_device_to_device };

cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, Stream& stream, Wait wait) {
  if (bytes == 0) return cudaSuccess;
  if (!to || !from) return cudaErrorInvalidValue;
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
  const auto a = reinterpret_cast<std::uintptr_t>(to), b = reinterpret_cast<std::uintptr_t>(from);
  if (a < b + bytes && b < a + bytes)
    throw Violation(fmt::format("a copy of {} bytes between ranges that overlap: {} bytes lie between their begins", bytes,
                                a < b ? b - a : a - b));
  const bool any = kind == cudaMemcpyDefault;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const Range source = look_up(from, bytes, from_device, !from_device && !any, "the source of a copy");
  const Range target = look_up(to, bytes, to_device, !to_device && !any, "the destination of a copy");
  const bool pageable = source.side == Side::pageable || target.side == Side::pageable;
  if (pageable && stream.capture) return invalidate(stream, cudaErrorStreamCaptureUnsupported);

  std::shared_ptr<std::vector<std::byte>> staging;
  if (source.side == Side::pageable) {
    const auto* begin = static_cast<const std::byte*>(from);
    staging = std::make_shared<std::vector<std::byte>>(begin, begin + bytes);
  }
  NodePtr made;
  const cudaError_t status = enqueue(
      stream,
      [=, source_use = source.use, target_use = target.use, into_pinned = target.side == Side::pinned,
       from_pinned = source.side == Side::pinned](Nodes after) {
        if (source_use) source_use->require_alive();
        if (target_use) target_use->require_alive();
        std::shared_ptr<PendingRead> reading;
        if (from_pinned) reading = std::make_shared<PendingRead>(find_allocation(from)->second);
        // Whoever reads it before the copy has run shall see so.
        if (into_pinned && find_allocation(to)->second.pending_reads == 0) poison(to, bytes);
        return make_node(
            [=] {
              if (source_use) source_use->require_alive();
              if (target_use) target_use->require_alive();
              std::memcpy(to, staging ? staging->data() : from, bytes);
              (void)reading;
            },
            std::move(after));
      },
      &made);
  if (status != cudaSuccess || !made) return status;
  const bool between_devices = source.side == Side::device && target.side == Side::device;
  const bool between_hosts = source.side != Side::device && target.side != Side::device;
  const bool blocks = wait == Wait::always_but_device_to_device ? !between_devices && (between_hosts || !staging)
                                                                : target.side == Side::pageable || between_hosts;
  if (blocks) run(Nodes{made});
  return cudaSuccess;
}

cudaError_t fill(void* data, int value, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return cudaSuccess;
  if (!data) return cudaErrorInvalidValue;
  const Range target = look_up(data, bytes, false, false, "the range of a fill");
  if (target.side == Side::pageable) MemoryUse::device(data, bytes, "the range of a fill");  // throws
  NodePtr made;
  const cudaError_t status = enqueue(
      stream,
      [=, use = *target.use](Nodes after) {
        use.require_alive();
        return make_node(
            [=] {
              use.require_alive();
              std::memset(data, value, bytes);
            },
            std::move(after));
      },
      &made);
  if (made && target.side == Side::pinned) run(Nodes{made});
  return status;
}

}  // namespace

MemoryUse MemoryUse::device(const void* data, std::size_t bytes, const std::string& what) {
  const std::lock_guard lock(runtime().mutex);
  const Entry entry = find_range(data, bytes, what);
  if (entry == runtime().allocations.end())
    throw Violation(fmt::format("{}: {} bytes that lie in no live allocation", what, bytes));
  if (entry->second.pinned) throw Violation(fmt::format("{}: {} bytes of pinned host memory", what, bytes));
  return {data, entry->second.number, what};
}

MemoryUse MemoryUse::argument(const void* data, const std::string& what) {
  const std::lock_guard lock(runtime().mutex);
  if (!data) return {data, 0, what};
  const Entry entry = find_allocation(data);
  if (entry == runtime().allocations.end()) throw Violation(what + " points to no live memory of the device");
  return {data, entry->second.number, what};
}

void MemoryUse::require_alive() const {
  if (!data_) return;
  const Entry entry = find_allocation(data_);
  if (entry == runtime().allocations.end() || entry->second.number != allocation_)
    throw Violation(fmt::format("{}: allocation {} was freed before it was used here", what_, allocation_));
}

void release_memory(int device) {
  auto& allocations = runtime().allocations;
  for (auto entry = allocations.begin(); entry != allocations.end();) {
    const auto next = std::next(entry);
    if (entry->second.device == device) release(entry);
    entry = next;
  }
}

void check_memory() {
  const std::lock_guard lock(runtime().mutex);
  for (const auto& [begin, allocation] : runtime().allocations)
    check_guard(reinterpret_cast<const std::byte*>(begin), allocation);
  for (const Freed& freed : runtime().freed) check_freed(freed);
  throw_faults();
}

}  // namespace outeffhop::simt

using namespace outeffhop::simt;  // NOLINT: the API is in the global namespace

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return api([&] {
    if (!free || !total) return cudaErrorInvalidValue;
    *total = runtime().current().total;
    *free = *total - runtime().current().used;
    return cudaSuccess;
  });
}
cudaError_t cudaMalloc(void** data, std::size_t bytes) { return allocate(data, bytes, false); }
cudaError_t cudaFree(void* data) { return release(data, false); }
cudaError_t cudaMallocHost(void** data, std::size_t bytes) { return allocate(data, bytes, true); }
cudaError_t cudaHostAlloc(void** data, std::size_t bytes, unsigned) { return allocate(data, bytes, true); }
cudaError_t cudaFreeHost(void* data) { return release(data, true); }

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return api([&] {
    Stream* on = find_stream(stream);
    return on ? copy(to, from, bytes, kind, *on, Wait::as_documented_for_async) : cudaErrorInvalidResourceHandle;
  });
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return api([&] {
    Stream& legacy = *find_stream(nullptr);
    if (const cudaError_t refused = refuse_implicit(legacy)) return refused;
    if (const cudaError_t refused = refuse_unsafe()) return refused;
    if (kind == cudaMemcpyHostToDevice) run(tails_of(legacy));  // "a stream sync is performed before the copy is initiated"
    return copy(to, from, bytes, kind, legacy, Wait::always_but_device_to_device);
  });
}
cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t stream) {
  return api([&] {
    Stream* on = find_stream(stream);
    return on ? fill(data, value, bytes, *on) : cudaErrorInvalidResourceHandle;
  });
}
cudaError_t cudaMemset(void* data, int value, std::size_t bytes) {
  return api([&] { return fill(data, value, bytes, *find_stream(nullptr)); });
}
