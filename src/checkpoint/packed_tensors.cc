#include "checkpoint/packed_tensors.h"

#include <fmt/format.h>

#include "base/printable_text.h"
#include "zero_infer/error.h"

namespace zi {

std::string packed_name(std::string_view matrix, const WeightFormat& format) {
  return fmt::format("{}.{}", matrix, name_of(format));
}

std::optional<PackedTensor> packed_tensor(const std::string& name, const StoredTensor& tensor,
                                          const std::string& file) {
  const std::size_t dot = name.rfind('.');
  if (tensor.dtype != "U8" || dot == std::string::npos) return std::nullopt;
  const std::string_view last = std::string_view(name).substr(dot + 1);
  const auto starts_as = [last](const char* kind) { return last.starts_with(kind); };
  if (!starts_as("int8") && !starts_as("int4") && !starts_as("float8")) return std::nullopt;
  const std::optional<WeightFormat> format = packed_format_named(last);
  if (!format) {
    throw CheckpointError(fmt::format(
        "{}: tensor {} is packed in a format that this version does not know; use the version that "
        "packed it, or pack the checkpoint again",
        file, in_quotes(name)));
  }
  return PackedTensor{name.substr(0, dot), *format};
}

const char* rows_version(const WeightFormat& format) {
  return format.scale == ScaleType::kFloat8 ? kFirstRowsVersion : kRowsVersion;
}

DType elements_of_packed(const SafetensorsHeader& header, const WeightFormat& format,
                         const std::string& file) {
  const auto said = [&](const char* key) {
    const auto found = header.metadata.find(key);
    return found == header.metadata.end() ? std::string() : found->second;
  };
  const std::string version = said(kRowsVersionKey);
  if (version != kRowsVersion && version != rows_version(format)) {
    throw CheckpointError(fmt::format(
        "{}: its packed rows are of version {} (`{}` of __metadata__), this version reads {} "
        "of {}; pack the checkpoint again",
        file, version.empty() ? "none" : in_quotes(version), kRowsVersionKey, rows_version(format),
        name_of(format)));
  }
  const std::string elements = said(kElementsKey);
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    if (name_of(dtype) == elements) return dtype;
  }
  throw CheckpointError(fmt::format(
      "{}: `{}` of __metadata__ is {}, not bfloat16, float16 or float32; pack the checkpoint again",
      file, kElementsKey, in_quotes(elements)));
}

}  // namespace zi
