// trainer.json of a checkpoint, and the resuming of a run from the configuration in it.
#include "tests/fuzz/target.h"
#include "train/checkpoint_files.h"
#include "train/config.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace outeffhop;
  const auto trainer = fuzz::value_or_refusal("trainer.json", {ErrorKind::checkpoint},
                                              [&] { return parse_trainer(fuzz::as_text(data, size), "trainer.json"); });
  if (!trainer) return 0;
  const TrainerState& state = trainer->snapshot.state;
  if (state.step < 0 || state.updates < 0 || state.samples < 0 || state.bad_steps_in_a_row < 0 || !(state.seconds >= 0.0)) {
    fuzz::finding("a count below 0");
  }
  fuzz::value_or_refusal("", {ErrorKind::usage}, [&] { return check_resume(trainer->config, Config{}); });
  fuzz::value_or_refusal("trainer.json", {ErrorKind::usage}, [&] { return read_config(trainer->config, "trainer.json"); });
  return 0;
}
