#include "tests/simt/nccl_arithmetic.h"

#include <concepts>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/tensor.h"

namespace outeffhop::simt {
namespace {

/// In what a type is compared, and in what added and multiplied: integers wrap around.
template <class T>
using Compared = std::conditional_t<std::is_same_v<T, bf16>, float, T>;
template <class T>
struct Computed {
  using Type = Compared<T>;
};
template <std::integral T>
struct Computed<T> {
  using Type = std::make_unsigned_t<T>;
};

template <class T>
T combine(T a, T b, ncclRedOp_t operation) {
  using C = typename Computed<T>::Type;
  const C x = static_cast<C>(a), y = static_cast<C>(b);
  switch (operation) {
    case ncclProd:
      return static_cast<T>(x * y);
    case ncclMax:
      return static_cast<Compared<T>>(a) < static_cast<Compared<T>>(b) ? b : a;
    case ncclMin:
      return static_cast<Compared<T>>(b) < static_cast<Compared<T>>(a) ? b : a;
    case ncclSum:
    case ncclAvg:
      break;
  }
  return static_cast<T>(x + y);
}

template <class T>
std::vector<std::byte> reduce(const std::vector<std::vector<std::byte>>& of_ranks, ncclRedOp_t operation) {
  constexpr bool kInteger = std::is_integral_v<T>;
  const std::size_t ranks = of_ranks.size();
  std::vector<std::byte> result(of_ranks[0].size());
  const auto element = [&](std::size_t rank, std::size_t at) {
    T value;
    std::memcpy(&value, of_ranks[rank].data() + at, sizeof value);
    if constexpr (!kInteger) {
      using C = typename Computed<T>::Type;
      if (operation == ncclAvg) value = static_cast<T>(static_cast<C>(value) * (C{1} / static_cast<C>(ranks)));
    }
    return value;
  };
  for (std::size_t at = 0; at < result.size(); at += sizeof(T)) {
    T sum = element(0, at);
    for (std::size_t rank = 1; rank < ranks; ++rank) sum = combine(sum, element(rank, at), operation);
    if constexpr (kInteger) {
      if (operation == ncclAvg) sum = static_cast<T>(sum / static_cast<T>(ranks));
    }
    std::memcpy(result.data() + at, &sum, sizeof sum);
  }
  return result;
}

}  // namespace

std::size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
      return 1;
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
  }
  return 0;
}

const char* name_of(ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
      return "ncclUint8";
    case ncclInt32:
      return "ncclInt32";
    case ncclUint32:
      return "ncclUint32";
    case ncclInt64:
      return "ncclInt64";
    case ncclUint64:
      return "ncclUint64";
    case ncclFloat32:
      return "ncclFloat32";
    case ncclFloat64:
      return "ncclFloat64";
    case ncclBfloat16:
      return "ncclBfloat16";
  }
  return "of no type";
}

bool is_operation(ncclRedOp_t operation) { return static_cast<unsigned>(operation) <= ncclAvg; }

const char* name_of(ncclRedOp_t operation) {
  constexpr const char* kNames[] = {"ncclSum", "ncclProd", "ncclMax", "ncclMin", "ncclAvg"};
  return kNames[operation];
}

std::vector<std::byte> reduced(const std::vector<std::vector<std::byte>>& of_ranks, ncclDataType_t type,
                               ncclRedOp_t operation) {
  switch (type) {
    case ncclUint8:
      return reduce<std::uint8_t>(of_ranks, operation);
    case ncclInt32:
      return reduce<std::int32_t>(of_ranks, operation);
    case ncclUint32:
      return reduce<std::uint32_t>(of_ranks, operation);
    case ncclInt64:
      return reduce<std::int64_t>(of_ranks, operation);
    case ncclUint64:
      return reduce<std::uint64_t>(of_ranks, operation);
    case ncclFloat32:
      return reduce<float>(of_ranks, operation);
    case ncclFloat64:
      return reduce<double>(of_ranks, operation);
    case ncclBfloat16:
      return reduce<bf16>(of_ranks, operation);
  }
  return {};
}

}  // namespace outeffhop::simt
