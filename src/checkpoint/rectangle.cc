#include "checkpoint/rectangle.h"

#include <algorithm>
#include <vector>

namespace zi {
namespace {

constexpr std::size_t kRectanglePieceBytes = std::size_t{1} << 20;
/// Reading so many bytes takes a disk as long as another read would.
constexpr std::size_t kReadThroughBytes = std::size_t{16} << 10;

}  // namespace

void read_rectangle(const TensorInFile& tensor, const Rectangle& rectangle, std::int64_t multiple,
                    const TakeRows& take) {
  if (rectangle.rows == 0 || rectangle.bytes == 0) return;
  const SafetensorsFile& file = *tensor.file;
  const bool whole = 2 * rectangle.bytes >= rectangle.pitch_bytes;
  const std::size_t pitch = whole ? rectangle.pitch_bytes : rectangle.bytes;  // in memory
  const auto fits = static_cast<std::int64_t>(kRectanglePieceBytes / pitch);
  const std::int64_t at_once =
      std::min(rectangle.rows, std::max(fits / multiple, std::int64_t{1}) * multiple);
  std::vector<std::byte> memory(static_cast<std::size_t>(at_once) * pitch);
  for (std::int64_t row = 0; row < rectangle.rows; row += at_once) {
    const std::int64_t count = std::min(at_once, rectangle.rows - row);
    const auto lines = static_cast<std::size_t>(count);
    const std::uint64_t start =
        tensor.tensor->begin + rectangle.begin +
        static_cast<std::uint64_t>(rectangle.first_row + row) * rectangle.pitch_bytes;
    if (whole) {
      file.read_all(start, memory.data(), (lines - 1) * pitch + rectangle.bytes);
    } else {
      const bool apart = rectangle.pitch_bytes - rectangle.bytes >= kReadThroughBytes;
      if (!apart) file.will_read(start, (lines - 1) * rectangle.pitch_bytes + rectangle.bytes);
      for (std::size_t i = 0; apart && i < lines; ++i) {
        file.will_read(start + i * rectangle.pitch_bytes, rectangle.bytes);
      }
      for (std::size_t i = 0; i < lines; ++i) {
        file.read(start + i * rectangle.pitch_bytes, memory.data() + i * pitch, rectangle.bytes);
      }
    }
    take(row, count, memory.data(), pitch);
  }
}

}  // namespace zi
