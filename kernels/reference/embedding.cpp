#include "kernels/embedding.h"

#include "kernels/reference/ops.h"
#include "kernels/reference/values.h"

namespace outeffhop::reference {

template <class Real>
void Ops<Real>::run(const EmbeddingForward& op) {
  for (std::int64_t r = 0; r < op.rows; ++r) {
    const std::int64_t type = op.type_ids ? op.type_ids[r] : 0;
    for (std::int64_t c = 0; c < op.C; ++c) {
      Real sum = 0;
      if (op.base) sum += read<Real>(op.base, r * op.C + c);
      if (op.token_table) sum += read<Real>(op.token_table, op.token_ids[r] * op.C + c);
      if (op.position_table) sum += read<Real>(op.position_table, op.position_ids[r] * op.C + c);
      if (op.type_table) sum += read<Real>(op.type_table, type * op.C + c);
      write(op.out, r * op.C + c, sum);
    }
  }
}

template <class Real>
void Ops<Real>::run(const EmbeddingBackward& op) {
  const auto d_out = load<Real>(op.d_out, op.rows * op.C);
  auto d_token = load<Real>(op.d_token_table, op.vocabulary * op.C);
  auto d_position = load<Real>(op.d_position_table, op.positions * op.C);
  auto d_type = load<Real>(op.d_type_table, op.types * op.C);
  for (std::int64_t r = 0; r < op.rows; ++r) {
    const std::int64_t type = op.type_ids ? op.type_ids[r] : 0;
    for (std::int64_t c = 0; c < op.C; ++c) {
      const Real g = d_out[r * op.C + c];
      if (op.d_token_table && op.token_ids[r] != op.padding_id) d_token[op.token_ids[r] * op.C + c] += g;
      if (op.d_position_table) d_position[op.position_ids[r] * op.C + c] += g;
      if (op.d_type_table) d_type[type * op.C + c] += g;
    }
  }
  store(op.d_token_table, d_token);
  store(op.d_position_table, d_position);
  store(op.d_type_table, d_type);
}

template void Ops<double>::run(const EmbeddingForward&);
template void Ops<float>::run(const EmbeddingForward&);
template void Ops<double>::run(const EmbeddingBackward&);
template void Ops<float>::run(const EmbeddingBackward&);

}  // namespace outeffhop::reference
