#include "checkpoint/rectangle.h"

#include <algorithm>
#include <vector>

namespace zi {
namespace {

/// A piece in memory, and in the file with what lies between.
constexpr std::size_t kRectanglePieceBytes = std::size_t{1} << 20;
constexpr std::size_t kRectangleSpanBytes = std::size_t{4} << 20;
/// Reading so many bytes takes a disk as long as another read would.
constexpr std::size_t kReadThroughBytes = std::size_t{16} << 10;

/// Tells the kernel of rows that will be read by themselves, and of what lies between them where
/// that is little.
void announce(const SafetensorsFile& file, std::uint64_t start, const Rectangle& rectangle,
              std::int64_t rows) {
  const std::size_t pitch = rectangle.pitch_bytes;
  const auto lines = static_cast<std::size_t>(rows);
  if (pitch - rectangle.bytes < kReadThroughBytes) {
    if (lines > 0) file.will_read(start, (lines - 1) * pitch + rectangle.bytes);
    return;
  }
  for (std::size_t i = 0; i < lines; ++i) file.will_read(start + i * pitch, rectangle.bytes);
}

}  // namespace

void read_rectangle(const TensorInFile& tensor, const Rectangle& rectangle, std::int64_t multiple,
                    const TakeRows& take) {
  if (rectangle.rows == 0 || rectangle.bytes == 0) return;
  const SafetensorsFile& file = *tensor.file;
  const bool whole = 2 * rectangle.bytes >= rectangle.pitch_bytes;
  const std::size_t pitch = whole ? rectangle.pitch_bytes : rectangle.bytes;  // in memory
  const auto fits = static_cast<std::int64_t>(
      std::min(kRectanglePieceBytes / pitch, kRectangleSpanBytes / rectangle.pitch_bytes));
  const std::int64_t at_once =
      std::min(rectangle.rows, std::max(fits / multiple, std::int64_t{1}) * multiple);
  const auto rows_at = [&](std::int64_t row) {
    return std::clamp(rectangle.rows - row, std::int64_t{0}, at_once);
  };
  const auto start_of = [&](std::int64_t row) {
    return tensor.tensor->begin + rectangle.begin +
           static_cast<std::uint64_t>(rectangle.first_row + row) * rectangle.pitch_bytes;
  };
  std::vector<std::byte> memory(static_cast<std::size_t>(at_once) * pitch);
  if (!whole) announce(file, start_of(0), rectangle, at_once);
  for (std::int64_t row = 0; row < rectangle.rows; row += at_once) {
    const auto lines = static_cast<std::size_t>(rows_at(row));
    if (whole) {
      file.read_all(start_of(row), memory.data(), (lines - 1) * pitch + rectangle.bytes);
    } else {
      // The disk reads the next piece while this one is taken.
      announce(file, start_of(row + at_once), rectangle, rows_at(row + at_once));
      for (std::size_t i = 0; i < lines; ++i) {
        file.read(start_of(row + static_cast<std::int64_t>(i)), memory.data() + i * pitch,
                  rectangle.bytes);
      }
    }
    take(row, rows_at(row), memory.data(), pitch);
  }
}

}  // namespace zi
