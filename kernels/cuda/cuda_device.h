// The CUDA backend: hand-written kernels, one op a file, and cuBLASLt for matrix products.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/cuda/make_cuda_device.h"

namespace outeffhop::cuda {

class LinearEngine;

// The ops, one source file each (kernels/cuda/NAME.cu); CudaDevice::run forwards to them. All run on context.stream.
void embedding_forward(const Context& context, const EmbeddingForward& op);
void embedding_backward(const Context& context, const EmbeddingBackward& op);
void layernorm_forward(const Context& context, const LayerNormForward& op);
void layernorm_backward(const Context& context, const LayerNormBackward& op);
void linear_forward(const Context& context, LinearEngine& engine, const LinearForward& op);
void linear_backward(const Context& context, LinearEngine& engine, const LinearBackward& op);
void activation_forward(const Context& context, const ActivationForward& op);
void activation_backward(const Context& context, const ActivationBackward& op);
void attention_forward(const Context& context, const AttentionForward& op);
void attention_backward(const Context& context, const AttentionBackward& op);
void attention_scores(const Context& context, const AttentionScores& op);
void attention_probabilities(const Context& context, const AttentionProbabilities& op);
void attention_context(const Context& context, const AttentionContext& op);
void dropout_add(const Context& context, const DropoutAdd& op);
void gather_rows(const Context& context, const GatherRows& op);
void scatter_rows(const Context& context, const ScatterRows& op);
void cross_entropy(const Context& context, const CrossEntropy& op);
void global_norm(const Context& context, const GlobalNorm& op);
void step_decision(const Context& context, const StepDecision& op);
void adamw(const Context& context, const AdamW& op);
void row_moments(const Context& context, const RowMoments& op);
void cast(const Context& context, const Cast& op);

}  // namespace outeffhop::cuda
