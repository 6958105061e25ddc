#include "zero_infer/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/printable_text.h"
#include "checkpoint/checkpoint_tensors.h"
#include "checkpoint/content_samples.h"
#include "checkpoint/packed_tensors.h"
#include "checkpoint/quantized_tensors.h"
#include "packing/valid_rows.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

namespace fs = std::filesystem;

/// One piece of a converting read: it stays in the core's cache, and on the reader's stack.
constexpr std::size_t kConversionBytes = std::size_t{256} << 10;
/// Reads in flight of a rank that samples: each one mostly waits for the disk.
constexpr int kSampleThreads = 16;
constexpr std::uint64_t kUpperHalf = ~std::uint64_t{0} << 32;

class Checkpoint final : public WeightSource {
 public:
  Checkpoint(std::string directory, std::string prefix, CheckpointTensors files)
      : directory_(std::move(directory)), prefix_(std::move(prefix)), files_(std::move(files)) {}

  void read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
            void* dst) const override;
  bool contains(const std::string& name) const override { return find(name) != nullptr; }
  DType stored_dtype(const std::string& name) const override {
    const CheckpointTensor& place = at(name);
    return place.packed ? place.elements : dtype_of(name, place);
  }
  std::optional<WeightFormat> packed_format(const std::string& name) const override {
    const CheckpointTensor* const place = find(name);
    return place == nullptr ? std::nullopt : place->packed;
  }
  void read_packed(const TensorSpec& tensor, std::int64_t first, std::int64_t count,
                   std::byte* dst) const override;
  std::vector<std::string> names() const override;
  std::uint64_t identity() const override;
  std::uint64_t content_identity() const override;
  std::vector<std::string> warnings() const override { return files_.warnings; }
  std::string describe() const override { return directory_; }

 private:
  const CheckpointTensor* find(const std::string& name) const;
  const CheckpointTensor& at(const std::string& name) const;
  DType dtype_of(const std::string& name, const CheckpointTensor& place) const;

  std::string directory_;
  std::string prefix_;
  CheckpointTensors files_;
  mutable std::once_flag sampled_;
  mutable std::uint64_t content_ = 0;
};

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : files_.tensors) names.push_back(name);
  std::ranges::sort(names);
  return names;
}

/// Why both content and times decide whether a shard file is of these weights. Size and mtime alone
/// are equal for other weights where times are fixed (Nix stores, images) or kept (`touch -r`, `cp
/// -p`): the samples see those. Samples alone miss a change of a few rows: ctime, which no program
/// can set, sees each write on the same host, also where mtime was set back afterwards. So a change
/// of times alone makes the shard files be written again, although the content is most likely the
/// same: that costs minutes, while wrong weights give wrong answers without a word. It happens when
/// the files were copied, fetched or restored again, or touched; an image or a store that is merely
/// mounted again keeps its times (an overlay shows those of the layer below). The one who writes
/// shard files says so (see same_content).
std::uint64_t Checkpoint::identity() const {
  const std::uint64_t content = content_identity();
  std::vector<std::uint64_t> facts = {content};
  for (const SafetensorsFile& file : files_.files) {
    const FileStamp& stamp = file.stamp();
    facts.push_back(stamp.bytes);
    facts.push_back(stamp.mtime_ns);
    facts.push_back(stamp.ctime_ns);
  }
  const std::uint64_t hash = XXH3_64bits(facts.data(), facts.size() * sizeof(facts.front()));
  return (content & kUpperHalf) | (hash & ~kUpperHalf);
}

std::uint64_t Checkpoint::content_identity() const {
  std::call_once(sampled_, [this] {
    std::vector<TensorInFile> tensors;
    for (const auto& [name, place] : files_.tensors) {
      if (place.quantized) {
        for (TensorInFile& part : place.quantized->tensors()) tensors.push_back(std::move(part));
      } else {
        tensors.push_back({place.packed ? packed_name(name, *place.packed) : name,
                           &files_.files[place.file], &place.tensor});
      }
    }
    content_ = sampled_content(std::move(tensors), kSampleThreads);
    const std::string& quantization = files_.quantization;
    if (!quantization.empty()) content_ ^= XXH3_64bits(quantization.data(), quantization.size());
  });
  return content_;
}

const CheckpointTensor* Checkpoint::find(const std::string& name) const {
  auto found = files_.tensors.find(name);
  if (found == files_.tensors.end()) found = files_.tensors.find(prefix_ + name);
  return found == files_.tensors.end() ? nullptr : &found->second;
}

/// Some programs say how they quantized in a file of their own.
std::string advice_for_config(const fs::path& directory) {
  std::error_code code;
  for (const char* name : {"quantize_config.json", "quant_config.json"}) {
    if (!fs::exists(directory / name, code)) continue;
    return fmt::format(
        "copy what {} holds into config.json as `quantization_config`, with its "
        "`quant_method`",
        name);
  }
  return "fetch config.json again, or use the checkpoint in 16 bits";
}

const CheckpointTensor& Checkpoint::at(const std::string& name) const {
  if (const CheckpointTensor* place = find(name)) return *place;
  for (const std::string& codes : names_of_codes(name)) {
    if (find(codes) == nullptr) continue;
    throw CheckpointError(fmt::format(
        "{}: {} is quantized ({}), and `quantization_config` of config.json does not say how: {}",
        directory_, in_quotes(name), in_quotes(codes), advice_for_config(directory_)));
  }
  const std::string also =
      prefix_.empty() ? "" : fmt::format(" (nor {})", in_quotes(prefix_ + name));
  throw CheckpointError(fmt::format(
      "{} has no tensor {}{} among its {} tensors; a file is missing, or config.json belongs "
      "to another model",
      directory_, in_quotes(name), also, files_.tensors.size()));
}

DType Checkpoint::dtype_of(const std::string& name, const CheckpointTensor& place) const {
  if (const auto dtype = usable_dtype(place.tensor.dtype)) return *dtype;
  throw CheckpointError(fmt::format(
      "{}: tensor {} is stored as {}; only weights in BF16, F16 or F32, and quantized ones as "
      "`quantization_config` of config.json says, can be used: convert the checkpoint to one of "
      "them",
      files_.files[place.file].path(), in_quotes(name), in_quotes(place.tensor.dtype)));
}

/// Reads and converts `count` elements at `offset` of the file block by block: from the page cache
/// what is there, else straight from the disk. Blocks end at pages where elements allow it.
void convert_large(const SafetensorsFile& file, std::uint64_t offset, std::size_t count, DType from,
                   DType to, std::byte* out) {
  const std::size_t element = size_of(from);
  DirectFile::Block block;
  while (count > 0) {
    const std::size_t most = DirectFile::kMostBytes - offset % kPageBytes;
    const std::size_t n = std::min(count, most / element);
    const std::byte* bytes = file.read_block(offset, n * element, block.data(), block);
    if ((offset & (element - 1)) != 0 && bytes != block.data()) {
      std::memmove(block.data(), bytes, n * element);  // tensors may lie at any byte of the file
      bytes = block.data();
    }
    convert(bytes, from, out, to, n);
    offset += n * element;
    out += n * size_of(to);
    count -= n;
  }
}

void Checkpoint::read_packed(const TensorSpec& tensor, std::int64_t first, std::int64_t count,
                             std::byte* dst) const {
  const CheckpointTensor& place = at(tensor.name);
  const SafetensorsFile& file = files_.files[place.file];
  if (!place.packed) return WeightSource::read_packed(tensor, first, count, dst);
  const std::int64_t rows = tensor.shape.front();
  const std::size_t row_bytes = place.packed->row_bytes(tensor.shape.back());
  if (!place.quantized &&
      place.tensor.shape != std::vector{rows, static_cast<std::int64_t>(row_bytes)}) {
    throw CheckpointError(fmt::format(
        "{}: tensor {} has the shape [{}]; ({}, {}) in {} are [{}, {}]: the file is damaged, or "
        "config.json belongs to another model",
        file.path(), in_quotes(packed_name(tensor.name, *place.packed)),
        fmt::join(place.tensor.shape, ", "), rows, tensor.shape.back(), name_of(*place.packed),
        rows, row_bytes));
  }
  if (first < 0 || count < 0 || first > rows || count > rows - first) {
    throw CheckpointError(fmt::format("{}: rows [{}, +{}) of tensor {} were asked for, it has {}",
                                      file.path(), first, count, in_quotes(tensor.name), rows));
  }
  if (place.quantized) {
    place.quantized->read(tensor, first, count, dst);
    return;
  }
  file.read_all(place.tensor.begin + static_cast<std::uint64_t>(first) * row_bytes, dst,
                static_cast<std::size_t>(count) * row_bytes);
  const std::int64_t valid = valid_rows(dst, count, tensor.shape.back(), *place.packed);
  if (valid == count) return;
  throw CheckpointError(
      fmt::format("{}: tensor {}: row {} has a scale or a code that is none; the file is damaged: "
                  "fetch or pack the checkpoint again",
                  file.path(), in_quotes(packed_name(tensor.name, *place.packed)), first + valid));
}

void Checkpoint::read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
                      void* dst) const {
  const CheckpointTensor& place = at(tensor.name);
  const SafetensorsFile& file = files_.files[place.file];
  if (place.quantized && tensor.shape.size() == 1) {
    throw CheckpointError(fmt::format(
        "{}: {} is quantized: norms, biases and other vectors that are quantized are not "
        "supported; use a checkpoint that has them in 16 bits",
        file.path(), in_quotes(tensor.name)));
  }
  if (place.packed) {
    throw CheckpointError(fmt::format("{}: tensor {} is packed in {}: it has no elements",
                                      file.path(), in_quotes(tensor.name), name_of(*place.packed)));
  }
  if (tensor.shape != place.tensor.shape) {
    throw CheckpointError(
        fmt::format("{}: tensor {} has the shape [{}], config.json asks for [{}]; config.json "
                    "belongs to another model",
                    file.path(), in_quotes(tensor.name), fmt::join(place.tensor.shape, ", "),
                    fmt::join(tensor.shape, ", ")));
  }
  const DType from = dtype_of(tensor.name, place);
  const std::int64_t elements = tensor.elements();
  if (first < 0 || count < 0 || first > elements || count > elements - first) {
    throw CheckpointError(
        fmt::format("{}: elements [{}, +{}) of tensor {} were asked for, it has {}", file.path(),
                    first, count, in_quotes(tensor.name), elements));
  }
  const std::size_t element = size_of(from);
  std::uint64_t offset = place.tensor.begin + static_cast<std::uint64_t>(first) * element;
  auto left = static_cast<std::size_t>(count);
  if (from == to) {
    file.read_all(offset, static_cast<std::byte*>(dst), left * element);
    return;
  }
  if (left * element >= kLargeBytes && file.direct().usable()) {
    convert_large(file, offset, left, from, to, static_cast<std::byte*>(dst));
    return;
  }
  if (left * element >= kLargeBytes) file.will_read(offset, left * element);
  alignas(64) std::array<std::byte, kConversionBytes> piece;
  auto* out = static_cast<std::byte*>(dst);
  while (left > 0) {
    const std::size_t n = std::min(left, piece.size() / element);
    file.read(offset, piece.data(), n * element);
    convert(piece.data(), from, out, to, n);
    offset += n * element;
    out += n * size_of(to);
    left -= n;
  }
}

}  // namespace

std::unique_ptr<WeightSource> open_checkpoint(const fs::path& directory, const std::string& prefix,
                                              const Quantization& quantization) {
  return std::make_unique<Checkpoint>(directory.string(), prefix,
                                      open_tensors(directory, quantization));
}

}  // namespace zi
