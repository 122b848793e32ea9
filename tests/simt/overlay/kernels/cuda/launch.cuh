// In place of kernels/cuda/launch.cuh: a launch becomes work for the executor, in the stream's order.
#pragma once

#include <tuple>
#include <type_traits>

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch_shape.h"
#include "tests/simt/executor.h"
#include "tests/simt/runtime.h"

namespace outeffhop::cuda {

/// Arguments are copied now, as CUDA does.
template <class... Parameters, class... Arguments>
void launch(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<std::remove_cvref_t<Parameters>> && ...), "CUDA copies arguments bytewise");
  std::tuple<std::remove_cvref_t<Parameters>...> copied(static_cast<Parameters>(arguments)...);
  const simt::Launch where{shape.kernel,
                           {shape.grid.x, shape.grid.y, shape.grid.z},
                           {shape.block.x, shape.block.y, shape.block.z},
                           shape.shared_bytes};
  simt::submit(shape.stream, [kernel, copied, where] { simt::run(where, [&] { std::apply(kernel, copied); }); });
}

}  // namespace outeffhop::cuda
