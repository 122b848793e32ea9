// Attention on tensor cores: bf16, head sizes 32, 64, 80, 96 and 128.
#pragma once

#include <type_traits>

#include "kernels/attention.h"
#include "kernels/cuda/context.h"

namespace outeffhop::cuda {

/// Each runs an op that is not empty and has been checked, and returns true; or returns false, and does nothing, where the
/// kernels do not serve: another storage dtype or head size, vectors that do not begin at multiples of 16 bytes and, in the
/// backward, no queries, no keys or no heads, and devices without the shared memory.
bool attention_forward_tensor(const Context& context, const AttentionForward& op);
/// What attention_forward_tensor hands to the kernel that keeps all keys and values of a head in shared memory.
bool attention_forward_resident(const Context& context, const AttentionForward& op);
bool attention_backward_tensor(const Context& context, const AttentionBackward& op);

/// Calls f(std::integral_constant<int, D>) for one of the head sizes and returns true; false for others.
template <class Function>
bool with_tensor_head_size(std::int64_t D, Function&& f) {
  const auto is = [&](auto size) {
    if (D != size()) return false;
    f(size);
    return true;
  };
  return is(std::integral_constant<int, 32>{}) || is(std::integral_constant<int, 64>{}) ||
         is(std::integral_constant<int, 80>{}) || is(std::integral_constant<int, 96>{}) ||
         is(std::integral_constant<int, 128>{});
}

}  // namespace outeffhop::cuda
