// What NCCL computes: element types, and reductions over ranks.
#pragma once

#include <nccl.h>

#include <cstddef>
#include <vector>

namespace outeffhop::simt {

/// Bytes of an element; 0 for what is no type here.
std::size_t size_of(ncclDataType_t type);
const char* name_of(ncclDataType_t type);
bool is_operation(ncclRedOp_t operation);
const char* name_of(ncclRedOp_t operation);

/// The elements of all ranks combined in rank order, each step rounded to the type. The average multiplies each rank's
/// elements by 1 / ranks first, that of integers divides the sum.
std::vector<std::byte> reduced(const std::vector<std::vector<std::byte>>& of_ranks, ncclDataType_t type,
                               ncclRedOp_t operation);

}  // namespace outeffhop::simt
