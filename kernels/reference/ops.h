// Every contract of kernels/*.h in plain arithmetic, one source file an op, for Real = double or float.
#pragma once

#include "kernels/device.h"

namespace outeffhop::reference {

template <class Real>
struct Ops {
  static void run(const EmbeddingForward& op);
  static void run(const EmbeddingBackward& op);
  static void run(const LayerNormForward& op);
  static void run(const LayerNormBackward& op);
  static void run(const LinearForward& op);
  static void run(const LinearBackward& op);
  static void run(const ActivationForward& op);
  static void run(const ActivationBackward& op);
  static void run(const AttentionForward& op);
  static void run(const AttentionBackward& op);
  static void run(const AttentionScores& op);
  static void run(const AttentionProbabilities& op);
  static void run(const AttentionContext& op);
  static void run(const DropoutAdd& op);
  static void run(const GatherRows& op);
  static void run(const ScatterRows& op);
  static void run(const CrossEntropy& op);
  static void run(const GlobalNorm& op);
  static void run(const StepDecision& op);
  static void run(const AdamW& op);
  static void run(const RowMoments& op);
  static void run(const Cast& op);
};

/// The factor of one element in the linear mapping: 0, the scale, or 1 without dropout.
template <class Real>
Real dropout_factor(const Dropout& dropout, std::int64_t b, std::int64_t row, std::int64_t column) {
  if (!dropout) return Real(1);
  const auto bits = dropout_bits_linear(dropout.key, dropout.sample_ids[b], static_cast<std::uint32_t>(row),
                                        static_cast<std::uint32_t>(column));
  return bits < dropout.threshold ? Real(0) : Real(dropout.scale);
}

}  // namespace outeffhop::reference
