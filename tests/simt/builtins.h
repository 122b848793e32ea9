// What CUDA C++ has without including anything: qualifiers, built-in variables and vector types, barriers, shuffles, votes,
// integer atomics, cache-hint accesses and a few mathematical functions, as the executor does them.
//
// Left out on purpose, so that a kernel that uses them does not compile here: static __shared__ (shared memory goes through
// shared_array), __activemask and other tests of who happens to run together, atomics on floating-point numbers, whose sums
// depend on the order, and the fast-math intrinsics.
#pragma once

#include <math.h>  // isfinite and its kin, without std

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "tests/simt/executor.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

#define threadIdx (::outeffhop::simt::current_thread)
#define blockIdx (::outeffhop::simt::current_block)
#define blockDim (::outeffhop::simt::current_block_extent)
#define gridDim (::outeffhop::simt::current_grid_extent)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

using std::max;
using std::min;

inline float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }

// Cache hints: the executor has no caches.
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}
template <class T>
void __stcg(T* p, T v) {
  *p = v;
}

inline void __threadfence() {}
inline void __threadfence_block() {}

namespace outeffhop::simt {
/// Integers only.
template <class T>
concept Atomic = std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;

/// Threads take turns, so an access as a whole is atomic.
template <Atomic T, class Change>
T change_atomically(T* p, const Where& where, Change change) {
  if (in_shared_memory(p)) note_shared_atomic(shared_offset(p, sizeof(T), where), sizeof(T), where);
  const T old = *p;
  *p = change(old);
  return old;
}
}  // namespace outeffhop::simt

template <outeffhop::simt::Atomic T>
T atomicAdd(T* p, std::type_identity_t<T> v, const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::change_atomically(p, where, [v](T old) { return old + v; });
}
template <outeffhop::simt::Atomic T>
T atomicMax(T* p, std::type_identity_t<T> v, const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::change_atomically(p, where, [v](T old) { return std::max(old, v); });
}
template <outeffhop::simt::Atomic T>
T atomicMin(T* p, std::type_identity_t<T> v, const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::change_atomically(p, where, [v](T old) { return std::min(old, v); });
}
template <outeffhop::simt::Atomic T>
T atomicAnd(T* p, std::type_identity_t<T> v, const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::change_atomically(p, where, [v](T old) { return old & v; });
}
template <outeffhop::simt::Atomic T>
T atomicOr(T* p, std::type_identity_t<T> v, const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::change_atomically(p, where, [v](T old) { return old | v; });
}
template <outeffhop::simt::Atomic T>
T atomicExch(T* p, std::type_identity_t<T> v, const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::change_atomically(p, where, [v](T) { return v; });
}
template <outeffhop::simt::Atomic T>
T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> v,
            const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::change_atomically(p, where, [=](T old) { return old == compare ? v : old; });
}

inline void __syncthreads(const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  outeffhop::simt::block_barrier(false, where);
}
inline int __syncthreads_count(int predicate, const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return static_cast<int>(outeffhop::simt::block_barrier(predicate != 0, where));
}
inline int __syncthreads_or(int predicate, const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::block_barrier(predicate != 0, where) != 0;
}
inline int __syncthreads_and(int predicate, const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::block_barrier(predicate == 0, where) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  outeffhop::simt::warp_barrier(mask, where);
}

namespace outeffhop::simt {

enum class ShuffleKind : std::uint32_t { index, up, down, exchange };
/// One lane's value with its choice of whom to read.
void shuffle_bits(ShuffleKind kind, const char* name, std::uint32_t mask, const void* value, std::size_t bytes, void* result,
                  int argument, int width, const Where& where);

template <class T>
T shuffle(ShuffleKind kind, const char* name, std::uint32_t mask, T value, int argument, int width, const Where& where) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA shuffles 4 or 8 bytes");
  T result;
  shuffle_bits(kind, name, mask, &value, sizeof value, &result, argument, width, where);
  return result;
}

std::uint32_t ballot(const char* name, std::uint32_t mask, bool predicate, const Where& where);

}  // namespace outeffhop::simt

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::shuffle(outeffhop::simt::ShuffleKind::index, "__shfl_sync", mask, value, source, width, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::shuffle(outeffhop::simt::ShuffleKind::up, "__shfl_up_sync", mask, value, static_cast<int>(delta),
                                  width, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::shuffle(outeffhop::simt::ShuffleKind::down, "__shfl_down_sync", mask, value,
                                  static_cast<int>(delta), width, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::shuffle(outeffhop::simt::ShuffleKind::exchange, "__shfl_xor_sync", mask, value, lane_mask, width,
                                  where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::ballot("__ballot_sync", mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate,
                      const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::ballot("__any_sync", mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      const outeffhop::simt::Where& where = outeffhop::simt::Where::current()) {
  return outeffhop::simt::ballot("__all_sync", mask, predicate == 0, where) == 0;
}
