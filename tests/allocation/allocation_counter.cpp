#include "tests/allocation/allocation_counter.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <link.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

// The C library's own, which it exports for programs that replace malloc.
extern "C" {
void* __libc_malloc(std::size_t size) noexcept;
void* __libc_calloc(std::size_t count, std::size_t size) noexcept;
void* __libc_realloc(void* data, std::size_t size) noexcept;
void* __libc_memalign(std::size_t alignment, std::size_t size) noexcept;
void __libc_free(void* data) noexcept;
}

namespace {

constexpr int kCallers = 8;
std::atomic<bool> counting = false;
std::atomic<std::int64_t> calls = 0, onednn_calls = 0, onednn_frees = 0;
std::atomic<void*> callers[kCallers];
std::uintptr_t onednn_begin = 0, onednn_end = 0;  // where libdnnl is mapped

bool in_onednn(void* caller) {
  const auto address = reinterpret_cast<std::uintptr_t>(caller);
  return address >= onednn_begin && address < onednn_end;
}

void note_allocation(void* caller) {
  if (!counting.load(std::memory_order_relaxed)) return;
  if (in_onednn(caller)) {
    ++onednn_calls;
  } else if (const std::int64_t before = calls++; before < kCallers) {
    callers[before] = caller;
  }
}

void note_free(void* data, void* caller) {
  if (data && counting.load(std::memory_order_relaxed) && in_onednn(caller)) ++onednn_frees;
}

int find_onednn(dl_phdr_info* object, std::size_t, void*) {
  if (!std::strstr(object->dlpi_name, "libdnnl")) return 0;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const auto& segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const std::uintptr_t begin = object->dlpi_addr + segment.p_vaddr;
    onednn_begin = onednn_begin == 0 ? begin : std::min(onednn_begin, begin);
    onednn_end = std::max(onednn_end, begin + segment.p_memsz);
  }
  return 1;
}

void* allocate(std::size_t size, std::size_t alignment, void* caller) {
  note_allocation(caller);
  void* data = alignment ? __libc_memalign(alignment, size) : __libc_malloc(size);
  if (!data) throw std::bad_alloc();
  return data;
}

void release(void* data, void* caller) {
  note_free(data, caller);
  __libc_free(data);
}

}  // namespace

#define CALLER __builtin_return_address(0)

extern "C" {
void* malloc(std::size_t size) noexcept {
  note_allocation(CALLER);
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) noexcept {
  note_allocation(CALLER);
  return __libc_calloc(count, size);
}
void* realloc(void* data, std::size_t size) noexcept {
  note_allocation(CALLER);
  note_free(data, CALLER);
  return __libc_realloc(data, size);
}
void* memalign(std::size_t alignment, std::size_t size) noexcept {
  note_allocation(CALLER);
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  note_allocation(CALLER);
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** data, std::size_t alignment, std::size_t size) noexcept {
  note_allocation(CALLER);
  void* found = __libc_memalign(alignment, size);
  if (!found) return ENOMEM;
  *data = found;
  return 0;
}
void free(void* data) noexcept { release(data, CALLER); }
}

void* operator new(std::size_t size) { return allocate(size, 0, CALLER); }
void* operator new[](std::size_t size) { return allocate(size, 0, CALLER); }
void* operator new(std::size_t size, std::align_val_t a) { return allocate(size, static_cast<std::size_t>(a), CALLER); }
void* operator new[](std::size_t size, std::align_val_t a) { return allocate(size, static_cast<std::size_t>(a), CALLER); }
void operator delete(void* data) noexcept { release(data, CALLER); }
void operator delete[](void* data) noexcept { release(data, CALLER); }
void operator delete(void* data, std::size_t) noexcept { release(data, CALLER); }
void operator delete[](void* data, std::size_t) noexcept { release(data, CALLER); }
void operator delete(void* data, std::align_val_t) noexcept { release(data, CALLER); }
void operator delete[](void* data, std::align_val_t) noexcept { release(data, CALLER); }
void operator delete(void* data, std::size_t, std::align_val_t) noexcept { release(data, CALLER); }
void operator delete[](void* data, std::size_t, std::align_val_t) noexcept { release(data, CALLER); }

namespace outeffhop::test {

AllocationCounter::AllocationCounter() {
  if (onednn_end == 0) dl_iterate_phdr(find_onednn, nullptr);
  calls = onednn_calls = onednn_frees = 0;
  counting = true;
}

AllocationCount AllocationCounter::stop() {
  counting = false;
  AllocationCount count{calls, onednn_calls, onednn_calls - onednn_frees, {}};
  for (std::int64_t i = 0; i < std::min<std::int64_t>(count.calls, kCallers); ++i) {
    void* const caller = callers[i];
    Dl_info object{};
    if (!dladdr(caller, &object)) continue;
    count.callers +=
        fmt::format("{}+{:#x} ({})\n", object.dli_fname, static_cast<char*>(caller) - static_cast<char*>(object.dli_fbase),
                    object.dli_sname ? object.dli_sname : "no name");
  }
  return count;
}

}  // namespace outeffhop::test
