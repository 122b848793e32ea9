// Attention with a normaliser that may say nothing: the outlier-efficient Hopfield layer (Hu et al., ICML 2024) and its kin.
//
//   s_ij = scale q_i . k_j                                  over visible keys j; masked keys have p = 0
//   p_ij = exp(s_ij) / (n + sum_j exp(s_ij))                n = 0: softmax; n = 1: softmax1 (OutEffHop); any n >= 0: softmax_n
//   o_i  = sum_j dropout(p_ij) v_j
//
// Never T x T in memory: the online softmax (Milakov, Gimelshein 2018; Dao et al. 2022) starts at running maximum
// log n and running sum 1, for n = 1 at (0, 1), so that neither overflow nor an infinity can occur. A row without a
// visible key is exactly 0 with zero gradient, for n = 0 too.
//
// Backward, from LSE_i = log(n + sum_j exp s_ij) and D_i = do_i . o_i (exact for every n and with dropout, since
// sum_j dp_ij p_ij = do_i . o_i):
//   ds_ij = p_ij (drop_ij do_i . v_j - D_i),  dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i,
//   dv_j = sum_i drop_ij p_ij do_i.
#pragma once

#include "kernels/dropout.h"
#include "kernels/tensor.h"

namespace outeffhop {

/// A (B, T, H, D) view: element (b, t, h, d) lies at data[b batch_stride + t row_stride + h head_stride + d]. The packed
/// (B, T, 3, H, D) projection is three such views. A batch stride of 0 shares one tensor by the whole batch.
struct HeadView {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t batch_stride = 0, row_stride = 0, head_stride = 0;

  explicit operator bool() const { return data != nullptr; }
};

struct ConstHeadView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t batch_stride = 0, row_stride = 0, head_stride = 0;

  ConstHeadView() = default;
  ConstHeadView(const void* d, DType t, std::int64_t bs, std::int64_t rs, std::int64_t hs)
      : data(d), dtype(t), batch_stride(bs), row_stride(rs), head_stride(hs) {}
  ConstHeadView(const HeadView& v)  // NOLINT: implicit by intent
      : data(v.data), dtype(v.dtype), batch_stride(v.batch_stride), row_stride(v.row_stride), head_stride(v.head_stride) {}
};

/// Everything that forward, backward and the observed form share.
struct AttentionProblem {
  std::int64_t B = 0, H = 0, Tq = 0, Tk = 0, D = 0;
  float scale = 1.0f;               ///< usually 1 / sqrt(D); the Hopfield beta
  float n = 1.0f;                   ///< the constant in the denominator, >= 0
  bool causal = false;              ///< query i sees key j only if j <= i + causal_offset
  std::int64_t causal_offset = 0;   ///< Tk - Tq when a cache precedes the queries
  const std::int32_t* key_lengths = nullptr;  ///< (B) device memory: keys [0, length) are visible; null: all. May be 0
  /// Packed sequences: (B, Tq, 2) device memory, query row i of sample b sees only keys [r_0, r_1) of its own sequence; null:
  /// all. Both ends are in [0, Tk] and never fall as i grows, so that a block of rows can skip the keys before and after it;
  /// r_0 = r_1 where a row belongs to no sequence. Cumulative lengths, written out a row: the shape of a packed batch does
  /// not depend on where its sequences end, and no kernel has to search. Causality and key_lengths hold as well.
  const std::int32_t* key_ranges = nullptr;
  Dropout dropout;                  ///< on p; tiled mapping, row h Tq + i, column j
};

struct AttentionForward {
  AttentionProblem problem;
  ConstHeadView q;  ///< (B, Tq, H, D)
  ConstHeadView k;  ///< (B, Tk, H, D)
  ConstHeadView v;  ///< (B, Tk, H, D)
  HeadView o;       ///< (B, Tq, H, D), written
  Tensor lse;       ///< (B, H, Tq) fp32 (reference: also fp64): log(n + sum exp s), 0 where n = 0 and no key is visible; or null
};

struct AttentionBackward {
  AttentionProblem problem;
  ConstHeadView q, k, v, o, d_o;
  ConstTensor lse;      ///< as written by the forward
  HeadView d_q, d_k, d_v;
  bool accumulate_d_q = false, accumulate_d_k = false, accumulate_d_v = false;
  /// A gradient whose batch stride is 0 sums over the batch. Gradients of masked keys and empty rows are exactly 0.
};

/// The observed form: the same attention with each stage in memory, for a block of query rows [row_begin, row_begin + rows),
/// so that a visitor can read or replace scores and probabilities (design: sites). Forward only, no dropout.
struct AttentionScores {
  AttentionProblem problem;
  std::int64_t row_begin = 0, rows = 0;
  ConstHeadView q, k;
  Tensor scores;  ///< (B, H, rows, Tk), written: scale q . k before any mask
};

struct AttentionProbabilities {
  AttentionProblem problem;
  std::int64_t row_begin = 0, rows = 0;
  ConstTensor scores;    ///< (B, H, rows, Tk)
  Tensor probabilities;  ///< (B, H, rows, Tk), written; masked entries 0; may alias scores
};

struct AttentionContext {
  AttentionProblem problem;
  std::int64_t row_begin = 0, rows = 0;
  ConstTensor probabilities;  ///< (B, H, rows, Tk)
  ConstHeadView v;
  HeadView o;  ///< (B, Tq, H, D): rows [row_begin, row_begin + rows) are written
};

/// What the attention sources of this binary can do; OUTEFFHOP_VANILLA_SOFTMAX builds them for n = 0 alone.
struct AttentionBuild {
  bool vanilla_only;            ///< true: n is a compile-time 0 and any other n is refused
  const char* default_softmax;  ///< "softmax1", or "vanilla" in a vanilla-only build
};

/// Defined beside the attention sources, the only others that see OUTEFFHOP_VANILLA_SOFTMAX.
AttentionBuild attention_build();

/// What every backend refuses before it runs `op` ("attention backward"): impossible sizes, dropout without sample ids, and a
/// softmax constant that is negative or that this binary was not built for. Throws Error(internal), Error(unsupported).
void check_attention(const AttentionProblem& problem, const char* op);

}  // namespace outeffhop
