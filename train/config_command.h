// `outeffhop config`: every key of a configuration with what it means, as a file to start from.
#pragma once

#include <string>

#include "train/config.h"

namespace outeffhop {

/// `config` as JSON with comments, which load_config() reads back unchanged. Above each key stands a line with its meaning,
/// what it accepts, its other spellings, what a resumed run may do to it and, where the value is another, the default of the
/// model type. All of it comes from describe(), which also reads and checks configurations.
std::string commented_config(const Config& config);

}  // namespace outeffhop
