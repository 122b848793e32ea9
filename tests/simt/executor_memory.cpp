// The executor's shared memory: who touches it, and the copies on their way to it.
#include <fmt/format.h>

#include <cstring>

#include "tests/simt/executor_state.h"

namespace outeffhop::simt {

void Executor::async_copy(const AsyncCopy& copy) {
  note(Access::pend, copy.to, copy.bytes, copy.where);
  Thread& thread = self(copy.where);
  thread.copies.push_back(copy);
  thread.copies.back().group = thread.groups;
}

void Executor::wait_for_async_copies(unsigned groups, const Where& where) {
  Thread& thread = self(where);
  auto& copies = thread.copies;
  auto landed = copies.begin();
  for (; landed != copies.end() && landed->group + groups < thread.groups; ++landed) {
    note(Access::land, landed->to, landed->bytes, where);
    if (landed->from_bytes) std::memcpy(shared() + landed->to, landed->from, landed->from_bytes);
    std::memset(shared() + landed->to + landed->from_bytes, 0, landed->bytes - landed->from_bytes);
  }
  copies.erase(copies.begin(), landed);
}

std::byte* shared_memory() { return executor().shared(); }
std::size_t shared_memory_bytes() { return executor().shared_bytes(); }

void note_shared_read(std::size_t offset, std::size_t bytes, const Where& where) {
  executor().note(Access::read, offset, bytes, where);
}
void note_shared_write(std::size_t offset, std::size_t bytes, const Where& where) {
  executor().note(Access::write, offset, bytes, where);
}
void note_shared_atomic(std::size_t offset, std::size_t bytes, const Where& where) {
  executor().note(Access::atomic, offset, bytes, where);
}

void async_copy(std::size_t offset, std::size_t bytes, const void* from, std::size_t from_bytes, const Where& where) {
  executor().async_copy({offset, bytes, from, from_bytes, 0, where});
}
void commit_async_copies(const Where& where) { executor().commit_async_copies(where); }
void wait_for_async_copies(unsigned groups, const Where& where) { executor().wait_for_async_copies(groups, where); }

bool in_shared_memory(const void* pointer) {
  const auto begin = reinterpret_cast<std::uintptr_t>(shared_memory()), at = reinterpret_cast<std::uintptr_t>(pointer);
  return at >= begin && at < begin + shared_memory_bytes();
}

std::size_t shared_offset(const void* pointer, std::size_t bytes, const Where& where) {
  const auto begin = reinterpret_cast<std::uintptr_t>(shared_memory()), at = reinterpret_cast<std::uintptr_t>(pointer);
  if (at < begin || at - begin > shared_memory_bytes() || bytes > shared_memory_bytes() - (at - begin)) {
    violate(fmt::format("an access to {} bytes of shared memory lies outside of the block's {} bytes", bytes,
                        shared_memory_bytes()),
            where);
  }
  return at - begin;
}

}  // namespace outeffhop::simt
