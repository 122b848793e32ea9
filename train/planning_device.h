// A device that owns no memory, for asking what a run would need.
#pragma once

#include <memory>

#include "kernels/device.h"

namespace outeffhop {

/// Models and optimizers can be made on it, at no cost but a few bytes an allocation, and then tell their sizes. Copies do
/// nothing; every op throws Error(internal). Its properties are those of the device that make_device(options) would make.
std::unique_ptr<Device> make_planning_device(const DeviceOptions& options = {});

}  // namespace outeffhop
