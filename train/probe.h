// One forward and backward on a given batch, everything written down: for whoever doubts a number.
#pragma once

#include <filesystem>
#include <string>

namespace outeffhop {

struct ProbeOptions {
  std::filesystem::path checkpoint;  ///< a Hugging Face model directory, or a run
  std::filesystem::path batch;  ///< safetensors: input_ids (B, T), optional attention_mask, token_type_ids, labels (B, T)
  std::filesystem::path out;
  std::string device = "auto";
  std::string dtype = "fp32";
  int threads = 0;
  bool attention = false;  ///< also write scores and probabilities
  bool quiet = false;
};

/// Dropout is off. Labels follow Hugging Face: -100 is ignored, and OPT's are shifted inside, so that labels = input_ids
/// works. The attention mask may only pad at the right. Writes, as F32:
///   loss        ()          mean cross-entropy of the labelled tokens
///   logits      (B, T, V)
///   grad.NAME               d loss / d parameter, for every parameter
///   SITE                    (B, T, channels); (B, H, T, T) for scores and probabilities; of the head, which sees the N
///                           labelled tokens alone, (1, N, channels) and (N, V) for the logits site. Sites that share a
///                           module's name with another get ".KIND" appended.
/// Without labels in the batch only logits and sites are written. Throws Error(data) for a batch that cannot be used.
void probe(const ProbeOptions& options);

}  // namespace outeffhop
