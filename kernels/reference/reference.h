// The contracts in plain arithmetic: the truth of every test, readable as the definition. One loop nest an op, no blocking,
// no SIMD, no threads. The reference is a whole Device, so that a model composed of its ops runs in fp64 from end to end.
#pragma once

#include <memory>

#include "kernels/device.h"

namespace outeffhop {

/// What the reference computes in. `f64`: the truth. `f32`: the plain formula evaluated in fp32, what a fast kernel's error
/// is measured against. Views may have any dtype: elements are read into the compute type and rounded once when written.
std::unique_ptr<Device> make_reference_device(DType compute = DType::f64);

}  // namespace outeffhop
