// Whether a model fits the machine, asked before anything is allocated.
#pragma once

#include <cstdint>
#include <string>

#include "model/model.h"

namespace outeffhop {

/// Bytes of memory that this process may use: the machine's, or the limit of its control group where that is lower.
double memory_of_machine();

/// Of these, the bytes that nobody uses at present, as far as the machine tells.
double available_memory();

/// Bytes of memory that this process holds at present: 0 where the system does not tell.
std::size_t resident_memory();

/// ", or keep fewer activations (training.recompute: ...)", for a model that could; empty for others.
std::string recompute_hint(const ModelOptions& options);

/// Throws Error(unsupported), naming the bytes needed and the bytes there are, when a model of these options cannot fit the
/// memory that `device` has available, or of the machine, where the device has none of its own. `state_values` float arrays
/// as large as the weights are needed there beside the model itself: moments, and on a machine's memory checkpoint copies,
/// or the weights as they were read.
void require_memory(const ModelConfig& config, const ModelOptions& options, const Device& device, std::int64_t state_values);

}  // namespace outeffhop
