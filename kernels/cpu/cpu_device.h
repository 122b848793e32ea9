// The CPU backend: oneDNN for matrix products, OpenMP and SIMD loops for the rest.
#pragma once

#include <memory>

#include "kernels/cpu/product.h"
#include "kernels/cpu/scratch.h"
#include "kernels/device.h"

namespace outeffhop::cpu {

/// A device on `threads` OpenMP threads; 0: as many as the process may run on. Threads beyond that are refused by name.
std::unique_ptr<Device> make_cpu_device(int threads);

// The ops, one source file each (kernels/cpu/NAME.cpp); CpuDevice::run forwards to them. `threads` is the team size.
void embedding_forward(int threads, const EmbeddingForward& op);
void embedding_backward(int threads, const EmbeddingBackward& op);
void layernorm_forward(int threads, Scratch& scratch, const LayerNormForward& op);
void layernorm_backward(int threads, Scratch& scratch, const LayerNormBackward& op);
void linear_forward(int threads, ProductEngine& products, const LinearForward& op);
void linear_backward(int threads, ProductEngine& products, const LinearBackward& op);
void activation_forward(int threads, const ActivationForward& op);
void activation_backward(int threads, const ActivationBackward& op);
void attention_forward(int threads, const AttentionForward& op);
void attention_backward(int threads, const AttentionBackward& op);
void attention_scores(int threads, const AttentionScores& op);
void attention_probabilities(int threads, const AttentionProbabilities& op);
void attention_context(int threads, const AttentionContext& op);
void dropout_add(int threads, const DropoutAdd& op);
void gather_rows(int threads, const GatherRows& op);
void scatter_rows(int threads, const ScatterRows& op);
void cross_entropy(int threads, Scratch& scratch, const CrossEntropy& op);
void global_norm(int threads, Scratch& scratch, const GlobalNorm& op);
void step_decision(const StepDecision& op);
void adamw(int threads, const AdamW& op);
void row_moments(int threads, const RowMoments& op);
void cast(int threads, const Cast& op);

/// Throws Error(unsupported) unless `dtype` is one that the CPU ops store: fp32 or bf16.
void require_storage(DType dtype, const char* op);

/// Throws Error(unsupported) unless `given` is absent or has the element type `expected`.
void require_same(DType expected, const ConstTensor& given, const char* op, const char* name);

}  // namespace outeffhop::cpu
