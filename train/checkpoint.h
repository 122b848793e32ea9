// Checkpoints: Hugging Face model directories that also resume.
//
//   RUN/checkpoints/step_00001000/
//     config.json          the model, loads in transformers
//     model.safetensors    fp32 master weights by their Hugging Face names
//     optimizer.safetensors  Adam's moments: NAME.m and NAME.v
//     trainer.json         where the run stands, and its configuration
//     manifest.json        size and xxh64 of every other file; written last
//
// All of it is written into a directory of another name, brought to the disk, read back from there, and renamed: a
// checkpoint is there whole or not at all, and one that was damaged later is noticed by its manifest.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/parameters.h"
#include "train/huggingface_config.h"
#include "train/spike_window.h"

namespace outeffhop {

/// Where a run stands between two steps.
struct TrainerState {
  std::int64_t step = 0;     ///< steps done, skipped ones included
  std::int64_t updates = 0;  ///< steps that changed the weights
  std::int64_t samples = 0;  ///< global samples read: the index of the next one
  std::int64_t bad_steps_in_a_row = 0;
  double seconds = 0.0;  ///< spent training
  SpikeHistory spikes;      ///< the window of the z-scores
  std::int64_t tokens = 0;  ///< read, without padding; -1 in checkpoints of versions that did not count them
  /// The directory of --resume DIR that this course of the run began from, absolute; "": it began with the run. So the same
  /// command, given again, is known to mean "go on", not "begin there once more".
  std::string resumed_from;
};

/// A copy in host memory of everything a checkpoint holds.
struct Snapshot {
  TrainerState state;
  std::vector<float> weights, first_moments, second_moments;  ///< flat, in the order of the parameter table
  std::string plans;                                          ///< Device::plans(): the run has the same bits only with them
};

/// A small file to lie beside a checkpoint's own.
struct ExtraFile {
  std::string name, contents;
};

/// What stays the same from one checkpoint of a run to the next.
struct CheckpointContext {
  std::filesystem::path run;
  ModelConfig model;
  TextIds text_ids;
  nlohmann::ordered_json config;       ///< as resolved
  std::string data_fingerprint;        ///< of the training shards: see data_fingerprint()
  std::string device;                  ///< Device::description(), which names all that the last bits depend on
  std::vector<ExtraFile> extra_files;  ///< written into each checkpoint: the tokenizer's
};

/// Writes a checkpoint, compares what the disk then holds with what was written, and returns its directory. metrics.jsonl
/// comes to the disk before it, so that no crash leaves a checkpoint of steps that the metrics do not have. Copies nothing of
/// the snapshot. Throws Error(io), or Error(checkpoint) where the disk gives back something else; nothing is left of the
/// attempt then.
std::filesystem::path write_checkpoint(const CheckpointContext& context, const ParameterTable& table,
                                       const Snapshot& snapshot);

/// Throws Error(checkpoint) naming the first file that is missing, has another size, or another hash than the manifest says.
void verify_checkpoint(const std::filesystem::path& checkpoint);

/// Checkpoint directories of a run, newest first. Unfinished ones are not among them.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& run);

/// The newest checkpoint of a run that verifies. A line for each that was passed over, and why, is added to `notes`.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& run, std::vector<std::string>* notes);

/// What a run needs to go on. Throws Error(checkpoint).
struct Resumable {
  Snapshot snapshot;
  nlohmann::json config;
  std::string data_fingerprint;
  std::string device;  ///< "" in checkpoints of versions that did not say
};
Resumable read_checkpoint(const std::filesystem::path& checkpoint, const ParameterTable& table);
/// The same without weights and moments.
Resumable read_checkpoint_state(const std::filesystem::path& checkpoint);

/// Renames checkpoints later than `step` to NAME.superseded, or NAME.superseded.2 and so on where that is taken: a run that goes on from an earlier one will make its own, and a
/// later resume must not take up the abandoned ones. Returns how many there were.
std::size_t set_aside_later_checkpoints(const std::filesystem::path& run, std::int64_t step);

/// Deletes directories that a crash left half written or half deleted. Throws Error(io).
void remove_leftovers(const std::filesystem::path& run);

/// Deletes leftovers, and every checkpoint but the newest `keep_last` and those at multiples of `keep_every` (0: none). To be
/// called right after write_checkpoint(): the newest, which is never deleted, is then one that has just been verified.
void prune_checkpoints(const std::filesystem::path& run, std::int64_t keep_last, std::int64_t keep_every);

}  // namespace outeffhop
