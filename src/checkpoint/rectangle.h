#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "checkpoint/content_samples.h"

namespace zi {

/// A part of a row-major matrix in a file: of `rows` rows from `first_row` on, which are
/// `pitch_bytes` apart, `bytes` from `begin` on.
struct Rectangle {
  std::size_t pitch_bytes = 0;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::size_t begin = 0;
  std::size_t bytes = 0;
};

/// Takes `rows` rows of the rectangle, `pitch` bytes apart in memory; row 0 is row `first` of the
/// rectangle.
using TakeRows = std::function<void(std::int64_t first, std::int64_t rows, const std::byte* data,
                                    std::size_t pitch)>;

/// Reads a rectangle in pieces of about a MiB, each of a multiple of `multiple` rows but the last.
/// Rows of which at least half is wanted are read whole, at most twice the bytes that are wanted;
/// of others each row's bytes are read by themselves, through the page cache: what lies between
/// them is read from the disk too where it is little, and is there for who wants it next. Any
/// thread. Throws IoError.
void read_rectangle(const TensorInFile& tensor, const Rectangle& rectangle, std::int64_t multiple,
                    const TakeRows& take);

}  // namespace zi
