// Which checkpoint a run goes on from, and whether it may.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "train/checkpoint.h"
#include "train/config.h"

namespace outeffhop {

/// Tells a line to who watches.
using Say = std::function<void(const std::string&)>;

/// The checkpoint that `resume` ("auto", "never" or a directory) asks for in the run of `context`, verified; none: the run
/// starts afresh. A directory is where this course of the run begins: once the run has a checkpoint of that course, the newest
/// is meant. Says which were passed over, and why. Throws Error where none will do, and where a course from outside would
/// begin in a run that has checkpoints of another. Changes nothing.
std::optional<std::filesystem::path> checkpoint_to_resume(const CheckpointContext& context, const std::string& resume,
                                                          const Say& say);

/// What TrainerState::resumed_from is for `resume`: "" for "auto" and "never".
std::string course_of(const std::string& resume);

/// What a checkpoint says of its run, without weights. Says which changes are worth telling. Throws
/// Error(usage) unless the run of `context` and `config` (resolved) may go on from it.
Resumable check_resumable(const std::filesystem::path& checkpoint, const CheckpointContext& context, const Config& config,
                          const Say& say);

}  // namespace outeffhop
