// In place of kernels/cuda/shared_memory.cuh: the same accessor, which reports each access to the executor.
#pragma once

#include <fmt/format.h>

#include <cstring>
#include <type_traits>

#include "tests/simt/builtins.h"

namespace outeffhop::cuda {

/// An index, and the line it stands in.
struct CheckedIndex {
  int value;
  simt::Where where;
  CheckedIndex(int i, const simt::Where& w = simt::Where::current()) : value(i), where(w) {}  // NOLINT: implicit by intent
  CheckedIndex(unsigned i, const simt::Where& w = simt::Where::current())                     // NOLINT
      : value(static_cast<int>(i)), where(w) {}
};

template <class T>
class SharedArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  SharedArray(std::size_t offset, int count) : offset_(offset), count_(count) {}

  /// Stands for an element: reading and writing it is noted. It is used at once or not at all: `auto x = array[i]` would be
  /// a copy on the device and an element here, so what follows from such an x does not compile.
  class Element {
   public:
    Element(std::size_t offset, const simt::Where& where) : offset_(offset), where_(where) {}
    Element(const Element&) = delete;

    operator T() const&& { return load(); }  // NOLINT: implicit by intent
    /// To what T converts to explicitly: static_cast<float>(array[i]) of a bf16 array.
    template <class U>
      requires(!std::is_same_v<U, T> && requires(const T& value) { static_cast<U>(value); })
    explicit operator U() const&& {
      return static_cast<U>(load());
    }
    T operator=(const T& value) && { return store(value); }
    T operator=(Element&& other) && { return store(other.load()); }
    T operator+=(const T& value) && { return store(load() + value); }
    T operator*=(const T& value) && { return store(load() * value); }

   private:
    T load() const {
      simt::note_shared_read(offset_, sizeof(T), where_);
      T value;
      std::memcpy(&value, simt::shared_memory() + offset_, sizeof value);
      return value;
    }
    T store(const T& value) const {
      simt::note_shared_write(offset_, sizeof(T), where_);
      std::memcpy(simt::shared_memory() + offset_, &value, sizeof value);
      return value;
    }

    std::size_t offset_;
    simt::Where where_;
  };

  Element operator[](const CheckedIndex& index) const {
    check(index);
    return Element(offset_ + static_cast<std::size_t>(index.value) * sizeof(T), index.where);
  }
  /// Not checked beyond the index: wrappers in ptx/ note what they do.
  T* address(const CheckedIndex& index) const {
    check(index);
    return reinterpret_cast<T*>(simt::shared_memory() + offset_) + index.value;
  }

 private:
  void check(const CheckedIndex& index) const {
    if (index.value < 0 || index.value >= count_)
      simt::violate(fmt::format("element {} of a shared array of {}", index.value, count_), index.where);
  }

  std::size_t offset_;
  int count_;
};

template <class T>
SharedArray<T> shared_array(int offset, int count, const simt::Where& where = simt::Where::current()) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
  if (offset < 0 || count < 0 || static_cast<std::size_t>(offset) + bytes > simt::shared_memory_bytes())
    simt::violate(fmt::format("a shared array of {} bytes at offset {}, where the launch asked for {} bytes", bytes, offset,
                              simt::shared_memory_bytes()),
                  where);
  if (static_cast<std::size_t>(offset) % alignof(T) != 0)
    simt::violate(fmt::format("a shared array at offset {} of elements aligned to {} bytes", offset, alignof(T)), where);
  return {static_cast<std::size_t>(offset), count};
}

}  // namespace outeffhop::cuda
