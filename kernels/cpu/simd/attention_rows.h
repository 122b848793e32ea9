// What the attention kernels share: strided heads to and from fp32 rows, which keys a row sees, and how work is cut for
// threads.
#pragma once

#include "kernels/attention.h"
#include "kernels/cpu/simd/tile_product.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

constexpr std::int64_t kQueryRows = 48;  ///< query rows of a block: whole tiles of kTileRows
constexpr std::int64_t kKeys = 128;      ///< keys of a block: whole panels, and the columns of one batch of dropout bits

OUTEFFHOP_INLINE constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
OUTEFFHOP_INLINE constexpr std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
OUTEFFHOP_INLINE constexpr std::int64_t blocks_of(std::int64_t count, std::int64_t size) {
  return (count + size - 1) / size;
}

/// The constant n of the denominator: known at compile time where the binary is built for the ordinary softmax alone.
#if defined(OUTEFFHOP_VANILLA_SOFTMAX)
OUTEFFHOP_INLINE constexpr float softmax_constant(const AttentionProblem&) { return 0.0f; }
#else
OUTEFFHOP_INLINE float softmax_constant(const AttentionProblem& problem) { return problem.n; }
#endif

/// A running maximum below every logit, yet finite: differences with it stay free of infinities.
constexpr float kNoMaximum = -3.0e38f;

/// Running (maximum, sum) of a row before its first key: (log n, 1), or (none, 0) for n = 0.
struct SoftmaxStart {
  float maximum, sum;
};
OUTEFFHOP_INLINE SoftmaxStart softmax_start(const AttentionProblem& problem) {
  const float n = softmax_constant(problem);
  return n > 0.0f ? SoftmaxStart{__builtin_logf(n), 1.0f} : SoftmaxStart{kNoMaximum, 0.0f};
}

/// Keys [begin, end); none where begin >= end.
struct KeyRange {
  std::int64_t begin, end;
  std::int64_t count() const { return larger(end - begin, 0); }
};

/// The keys that query row i of sample b sees: no mask leaves holes. Neither end falls as i grows.
OUTEFFHOP_INLINE KeyRange visible_keys(const AttentionProblem& p, std::int64_t b, std::int64_t i) {
  KeyRange visible = {0, p.Tk};
  if (p.key_ranges) {
    const std::int32_t* range = p.key_ranges + (b * p.Tq + i) * 2;
    visible = {larger(range[0], 0), smaller(range[1], p.Tk)};
  }
  if (p.key_lengths) visible.end = smaller(visible.end, larger(p.key_lengths[b], 0));
  if (p.causal) visible.end = smaller(visible.end, larger(i + p.causal_offset + 1, 0));
  return visible;
}

/// Where a block of keys may begin: at a whole panel and a whole tile of dropout bits.
constexpr std::int64_t kKeyStep = larger(kPanel, 32);
static_assert(kKeys % kKeyStep == 0 && kKeyStep % W == 0);

/// What query rows [first, last] see together, begun early enough for a block of keys.
OUTEFFHOP_INLINE KeyRange keys_of_rows(const AttentionProblem& p, std::int64_t b, std::int64_t first, std::int64_t last) {
  return {visible_keys(p, b, first).begin / kKeyStep * kKeyStep, visible_keys(p, b, last).end};
}

/// Of the logits s of keys [key, key + columns), those that a row sees are among the first so many; none if not positive.
/// Those before the visible ones become so low that their exp is exactly 0.
OUTEFFHOP_INLINE std::int64_t hide_keys_before(KeyRange visible, std::int64_t key, std::int64_t columns, float* s) {
  const std::int64_t hidden = visible.begin - key, end = smaller(visible.end - key, columns);
  if (hidden <= 0) return end;
  if (hidden >= end) return 0;
  for (std::int64_t j = 0; j < hidden; ++j) s[j] = kNoMaximum;
  return end;
}

template <class T>
static inline void load_rows_of(const T* from, std::int64_t row_stride, std::int64_t rows, std::int64_t D, float scale,
                                float* to) {
  const std::int64_t padded = round_up(D, W), whole = D / W * W;
  for (std::int64_t row = 0; row < rows; ++row, from += row_stride, to += padded) {
    for (std::int64_t d = 0; d < whole; d += W) store(to + d, load(from + d) * scale);
    if (whole < D) store(to + whole, load_part(from + whole, D - whole) * scale);
  }
}

/// Rows [begin, begin + rows) of head (b, h), times scale, as fp32 rows of round_up(D, 16) floats; the padding is 0.
OUTEFFHOP_INLINE void load_rows(const ConstHeadView& view, std::int64_t b, std::int64_t h, std::int64_t begin,
                                std::int64_t rows, std::int64_t D, float scale, float* to) {
  const std::int64_t offset = b * view.batch_stride + begin * view.row_stride + h * view.head_stride;
  if (view.dtype == DType::f32) {
    load_rows_of(static_cast<const float*>(view.data) + offset, view.row_stride, rows, D, scale, to);
  } else {
    load_rows_of(static_cast<const bf16*>(view.data) + offset, view.row_stride, rows, D, scale, to);
  }
}

/// Heads of more elements than this are not prefetched whole: they would push out the one at work.
constexpr std::int64_t kPrefetchedElements = 1 << 16;

/// Asks the caches for rows [begin, begin + rows) of a head. They lie far apart, each too short for the processor's own
/// prefetching, and their turn comes after the head at work.
template <bool ForWriting, class View>
OUTEFFHOP_INLINE void prefetch_rows(const View& view, std::int64_t b, std::int64_t h, std::int64_t begin, std::int64_t rows,
                                    std::int64_t D) {
  const std::int64_t size = view.dtype == DType::f32 ? 4 : 2;
  const char* row =
      static_cast<const char*>(view.data) + (b * view.batch_stride + begin * view.row_stride + h * view.head_stride) * size;
  for (std::int64_t i = 0; i < rows; ++i, row += view.row_stride * size)
    for (std::int64_t byte = 0; byte < D * size; byte += 64) {
      if constexpr (ForWriting) {
        __builtin_prefetch(row + byte, 1);
      } else {
        __builtin_prefetch(row + byte, 0, 2);
      }
    }
}

template <class T>
static inline void store_rows_of(T* to, std::int64_t row_stride, std::int64_t rows, std::int64_t D, float scale,
                                 bool accumulate, const float* from) {
  const std::int64_t padded = round_up(D, W), whole = D / W * W;
  for (std::int64_t row = 0; row < rows; ++row, to += row_stride, from += padded) {
    for (std::int64_t d = 0; d < whole; d += W) {
      const vf x = load(from + d) * scale;
      store(to + d, accumulate ? load(to + d) + x : x);
    }
    if (whole < D) {
      const vf x = load(from + whole) * scale;
      store_part(to + whole, accumulate ? load_part(to + whole, D - whole) + x : x, D - whole);
    }
  }
}

/// The way back: fp32 rows times scale, written to (or added to, in fp32, then rounded once) rows of a head.
OUTEFFHOP_INLINE void store_rows(const HeadView& view, std::int64_t b, std::int64_t h, std::int64_t begin, std::int64_t rows,
                                 std::int64_t D, float scale, bool accumulate, const float* from) {
  const std::int64_t offset = b * view.batch_stride + begin * view.row_stride + h * view.head_stride;
  if (view.dtype == DType::f32) {
    store_rows_of(static_cast<float*>(view.data) + offset, view.row_stride, rows, D, scale, accumulate, from);
  } else {
    store_rows_of(static_cast<bf16*>(view.data) + offset, view.row_stride, rows, D, scale, accumulate, from);
  }
}

/// Rows [begin, begin + rows) transposed into panels whose column 0 is row 0 of the head; begin is a multiple of 16. Columns
/// up to the next multiple of 16 become 0. `strip` holds 16 rows.
static inline void load_transposed(const ConstHeadView& view, std::int64_t b, std::int64_t h, std::int64_t begin,
                                   std::int64_t rows, std::int64_t D, float* strip, float* out) {
  const std::int64_t padded = round_up(D, W);
  for (std::int64_t row = 0; row < rows; row += W) {
    const std::int64_t count = smaller(W, rows - row);
    load_rows(view, b, h, begin + row, count, D, 1.0f, strip);
    for (std::int64_t i = count * padded; i < W * padded; i += W) store(strip + i, vf{});
    transpose_rows(strip, W, padded, padded, begin + row, out);
  }
}

/// Floats of the panels of `rows` transposed rows.
constexpr std::int64_t transposed_size(std::int64_t rows, std::int64_t D) {
  return round_up(rows, larger(kPanel, W)) * round_up(D, W);
}

/// Cuts one scratch buffer into aligned pieces. Without a buffer it only counts.
struct Carver {
  float* base;
  std::int64_t used = 0;
  float* operator()(std::int64_t count) {
    float* piece = base ? base + used : nullptr;
    used += round_up(count, W);
    return piece;
  }
};

/// The share of [0, total) that belongs to part `part` of `parts`; an item belongs to the part that holds its start.
struct Share {
  std::int64_t begin, end;
  Share(std::int64_t total, int part, int parts) : begin(total * part / parts), end(total * (part + 1) / parts) {}
  bool holds(std::int64_t start) const { return start >= begin && start < end; }
};

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
