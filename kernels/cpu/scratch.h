// Working memory of the CPU ops: grow-only, so that nothing is allocated once every shape has been seen.
#pragma once

#include <cstddef>
#include <cstdint>

namespace outeffhop::cpu {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();

  /// At least `count` elements, 64-byte aligned, contents unspecified. The next call may hand out the same memory.
  template <class T>
  T* get(std::int64_t count) {
    return static_cast<T*>(bytes(static_cast<std::size_t>(count) * sizeof(T)));
  }

 private:
  void* bytes(std::size_t size);

  void* data_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace outeffhop::cpu
