#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "checkpoint/packed_tensors.h"
#include "checkpoint/safetensors.h"
#include "zero_infer/error.h"

namespace {

/// Either a CheckpointError with a message, or a header whose tensors lie inside the file; of a
/// packed tensor, the matrix and the format whose names are the tensor's.
void parse(std::string_view start, std::uint64_t file_bytes) {
  try {
    const zi::SafetensorsHeader header = zi::parse_safetensors_header(start, file_bytes, "fuzz");
    for (const auto& [name, tensor] : header.tensors) {
      if (tensor.begin < header.bytes || tensor.end < tensor.begin || tensor.end > file_bytes) {
        std::abort();
      }
      const auto packed = zi::packed_tensor(name, tensor, "fuzz");
      if (!packed) continue;
      if (zi::packed_name(packed->matrix, packed->format) != name) std::abort();
      if (!packed->format.packed() || packed->format.row_bytes(33) % 16 != 0) std::abort();
      zi::elements_of_packed(header, packed->format, "fuzz");
    }
  } catch (const zi::CheckpointError& error) {
    if (error.what()[0] == '\0') std::abort();
  }
}

}  // namespace

/// Takes the bytes once as a whole file and once as the JSON of one: a length word that fits is
/// hard to guess. The JSON's file holds as many bytes of tensors as the first byte behind a `#` at
/// its end says, else 8.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  parse(bytes, size);
  std::size_t tensor_bytes = 8;
  std::string_view json = bytes;
  if (size >= 2 && bytes[size - 2] == '#') {
    tensor_bytes = data[size - 1];
    json.remove_suffix(2);
  }
  std::string start;
  for (int i = 0; i < 8; ++i) start += static_cast<char>(json.size() >> (8 * i) & 0xff);
  start += json;
  parse(start, start.size() + tensor_bytes);
  return 0;
}
