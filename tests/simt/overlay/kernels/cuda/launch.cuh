// In place of kernels/cuda/launch.cuh: a launch becomes work for the executor, in the stream's order.
#pragma once

#include <tuple>
#include <type_traits>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch_shape.h"
#include "tests/simt/executor.h"
#include "tests/simt/runtime.h"

namespace outeffhop::cuda {

/// Arguments are copied now, as CUDA does. Pointers among them must point into memory of the device, or pinned memory.
template <class... Parameters, class... Arguments>
void launch(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<std::remove_cvref_t<Parameters>> && ...), "CUDA copies arguments bytewise");
  constexpr std::size_t kWithoutAsking = 48 * 1024;
  const auto* key = reinterpret_cast<const void*>(kernel);
  if (shape.shared_bytes > kWithoutAsking) {
    OUTEFFHOP_CUDA(
        cudaFuncSetAttribute(key, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)));
  }
  std::tuple<std::remove_cvref_t<Parameters>...> copied(static_cast<Parameters>(arguments)...);
  std::vector<simt::MemoryUse> pointers;
  auto note = [&, number = 0](const auto& argument) mutable {
    ++number;
    if constexpr (std::is_pointer_v<std::remove_cvref_t<decltype(argument)>>) {
      if (argument) {
        pointers.push_back(simt::MemoryUse::argument(
            argument, "kernel " + std::string(shape.kernel) + ", argument " + std::to_string(number)));
      }
    }
  };
  std::apply([&](const auto&... each) mutable { (note(each), ...); }, copied);
  const simt::Launch where{shape.kernel,
                           {shape.grid.x, shape.grid.y, shape.grid.z},
                           {shape.block.x, shape.block.y, shape.block.z},
                           shape.shared_bytes};
  check(simt::launch_kernel(key, where, shape.stream, std::move(pointers), [kernel, copied] { std::apply(kernel, copied); }),
        shape.kernel);
}

}  // namespace outeffhop::cuda
