#pragma once

#include <cstddef>
#include <cstdint>

#include "packing/packed_row.h"

namespace zi {

/// unpack_rows to bfloat16 of kInt8Weights and kInt4Weights, with AVX-512: false, and nothing done,
/// for other formats and on processors without it.
bool unpack_with_avx512(const std::byte* packed, std::int64_t rows, const PackedRow& row,
                        std::uint16_t* out);

}  // namespace zi
