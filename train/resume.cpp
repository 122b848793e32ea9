#include "train/resume.h"

#include "train/files.h"

namespace outeffhop {

std::optional<std::filesystem::path> checkpoint_to_resume(const CheckpointContext& context, const std::string& resume,
                                                          const Say& say) {
  const std::string run = context.run.string();
  if (resume == "never") {
    if (!list_checkpoints(context.run).empty()) {
      fail(ErrorKind::usage, "{} already holds checkpoints: continue with --resume auto, or start another run with --out",
           run);
    }
    return std::nullopt;
  }
  if (resume == "auto") {
    if (list_checkpoints(context.run).empty()) return std::nullopt;
    std::vector<std::string> passed_over;
    auto newest = newest_checkpoint(context.run, &passed_over);
    for (const std::string& note : passed_over) say(note);
    if (!newest) {
      fail(ErrorKind::checkpoint, "no checkpoint of {} is sound ({}); start another run with --out", run,
           passed_over.front());
    }
    return newest;
  }
  const bool has_checkpoints = !list_checkpoints(context.run).empty();
  if (has_checkpoints) {
    const auto newest = newest_checkpoint(context.run, nullptr);
    if (newest && read_checkpoint_state(*newest).snapshot.state.resumed_from == course_of(resume)) {
      say(fmt::format("this run already went on from {}: its newest checkpoint is taken", resume));
      return newest;
    }
  }
  if (!std::filesystem::is_directory(status_of(resume))) {
    fail(ErrorKind::usage, "--resume {}: expected \"auto\", \"never\" or the directory of a checkpoint", resume);
  }
  verify_checkpoint(resume);
  std::error_code error;
  const bool inside = std::filesystem::equivalent(std::filesystem::path(resume) / "..", context.run / "checkpoints", error);
  if (has_checkpoints && !inside) {
    fail(ErrorKind::usage,
         "--resume {}: {} already holds checkpoints that did not come from there: continue them with --resume auto, or "
         "start another run with --out",
         resume, run);
  }
  return resume;
}

std::string course_of(const std::string& resume) {
  if (resume == "auto" || resume == "never") return "";
  const std::string path = std::filesystem::weakly_canonical(resume).string();
  return path.ends_with('/') ? path.substr(0, path.size() - 1) : path;
}

Resumable check_resumable(const std::filesystem::path& checkpoint, const CheckpointContext& context, const Config& config,
                          const Say& say) {
  Resumable before = read_checkpoint_state(checkpoint);
  for (const std::string& note : check_resume(before.config, config)) say("note: " + note);
  if (!before.device.empty() && before.device != context.device) {
    say(fmt::format("note: the device was \"{}\" and is now \"{}\": the last bits of sums may differ", before.device,
                    context.device));
  }
  if (before.data_fingerprint != context.data_fingerprint) {
    fail(ErrorKind::usage, "cannot continue the run: the shards of data.train ({}) are not those it was trained on so far",
         config.data.train);
  }
  return before;
}

}  // namespace outeffhop
