// Embedding: the sum of up to three table rows and an optional dense input.
#pragma once

#include "kernels/tensor.h"

namespace outeffhop {

/// out[r] = base[r] + token_table[token_ids[r]] + position_table[position_ids[r]] + type_table[type_ids[r]], in fp32,
/// rounded once. A term whose table (or base) is null is left out. Ids must lie inside their tables (checked by whoever
/// makes the batch, not here).
struct EmbeddingForward {
  std::int64_t rows = 0, C = 0;               ///< rows = B T
  const std::int32_t* token_ids = nullptr;    ///< (rows)
  const std::int32_t* position_ids = nullptr; ///< (rows)
  const std::int32_t* type_ids = nullptr;     ///< (rows); null: type 0 everywhere
  ConstTensor base;                           ///< (rows, C) or null: e.g. OPT's projected token embedding
  ConstTensor token_table;                    ///< (V, C)
  ConstTensor position_table;                 ///< (P, C)
  ConstTensor type_table;                     ///< (types, C)
  Tensor out;                                 ///< (rows, C)
};

/// Accumulates d_out into the rows of the gradient tables. The order of the additions follows from the ids alone (each backend
/// has its own): the same bits for any thread count, schedule and GPU. Tables that are null are left out (base's gradient is
/// d_out itself).
struct EmbeddingBackward {
  std::int64_t rows = 0, C = 0;
  std::int64_t vocabulary = 0, positions = 0, types = 0;  ///< rows of each table
  const std::int32_t* token_ids = nullptr;
  const std::int32_t* position_ids = nullptr;
  const std::int32_t* type_ids = nullptr;
  std::int32_t padding_id = -1;  ///< token whose row gets no gradient (torch's padding_idx); -1: none
  ConstTensor d_out;             ///< (rows, C) storage dtype
  Tensor d_token_table;          ///< (V, C) fp32, accumulated
  Tensor d_position_table;       ///< (P, C) fp32, accumulated
  Tensor d_type_table;           ///< (types, C) fp32, accumulated
};

}  // namespace outeffhop
