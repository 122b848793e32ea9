// The CPU backend: oneDNN for matrix products, OpenMP and SIMD loops for the rest.
#pragma once

#include <memory>

#include "kernels/device.h"

namespace outeffhop::cpu {

/// A device on `threads` OpenMP threads; 0: as many as the process may run on. Threads beyond that are refused by name.
std::unique_ptr<Device> make_cpu_device(int threads);

// The ops, one source file each (kernels/cpu/NAME.cpp); CpuDevice::run forwards to them. `threads` is the team size.
void attention_forward(int threads, const AttentionForward& op);
void attention_backward(int threads, const AttentionBackward& op);
void attention_scores(int threads, const AttentionScores& op);
void attention_probabilities(int threads, const AttentionProbabilities& op);
void attention_context(int threads, const AttentionContext& op);

}  // namespace outeffhop::cpu
