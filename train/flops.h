// Floating-point operations of a training step: what the task needs, not what a device happens to do.
#pragma once

#include "data/batch.h"
#include "model/config.h"

namespace outeffhop {

/// What one pass over some sequences works on. Doubles: expected values need not be whole, and products must not overflow.
struct PassWork {
  double rows = 0.0;    ///< positions, padding included: every linear layer of the body sees them
  double labels = 0.0;  ///< labelled positions: the only ones that reach the head
  double pairs = 0.0;   ///< (query, key that it may see), of one head

  PassWork& operator+=(const PassWork& other);
};

/// The work of a batch, counted label by label and query by query. A causal query sees no key after its own; one in a packed
/// row, none of another document; none sees padding.
PassWork count_work(const Batch& batch, bool causal);

/// Multiplications and additions of a forward and a backward pass. With C channels, F of the feed-forward layer, L layers, E
/// of the embeddings and V token ids,
///
///     weights a row    w = L (4 C^2 + 2 C F), and E C of OPT's project_in where E is not C
///     weights a label  h = E V, and C^2 of BERT's head or E C of OPT's project_out where E is not C
///     FLOPs = 3 * (2 (rows w + labels h) + 4 L C pairs)
///
/// 2 are a multiplication and an addition; 4 C a pair: q.k and p v in all heads; 3 times, as the backward has two products
/// for each of the forward. What a backward computes again (attention's scores, the layers of training.recompute "block") is
/// not counted, nor anything that is no product.
double training_flops(const ModelConfig& config, const PassWork& work);

/// What training.recompute "block" does beyond that: all products of a layer's forward but the MLP's second, once more in
/// each layer but the last,
///
///     FLOPs = (L - 1) (2 rows (4 C^2 + C F) + 4 C pairs)
double recomputed_flops(const ModelConfig& config, const PassWork& work);

}  // namespace outeffhop
