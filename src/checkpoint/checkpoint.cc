#include "zero_infer/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/json_file.h"
#include "checkpoint/packed_tensors.h"
#include "checkpoint/quantized_tensors.h"
#include "content_samples.h"
#include "safetensors.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr std::size_t kMaxIndexDepth = 8;
/// One piece of a converting read: it stays in the core's cache, and on the reader's stack.
constexpr std::size_t kConversionBytes = std::size_t{256} << 10;
/// Reads in flight of a rank that samples: each one mostly waits for the disk.
constexpr int kSampleThreads = 16;
constexpr std::uint64_t kUpperHalf = ~std::uint64_t{0} << 32;

std::optional<DType> usable_dtype(std::string_view stored) {
  if (stored == "BF16") return DType::kBFloat16;
  if (stored == "F16") return DType::kFloat16;
  if (stored == "F32") return DType::kFloat32;
  return std::nullopt;
}

struct Place {
  std::size_t file = 0;
  StoredTensor tensor;
  std::optional<WeightFormat> packed;                          // its rows are packed
  DType elements = DType::kBFloat16;                           // that they had
  std::shared_ptr<const QuantizedMatrix> quantized = nullptr;  // by another program
};

/// The files of a directory, opened, and where each tensor is.
struct Files {
  std::vector<SafetensorsFile> files;
  std::unordered_map<std::string, Place> tensors;
  std::vector<std::string> warnings;
  std::string quantization;  // all that decides the values, beside the tensors
};

class Checkpoint final : public WeightSource {
 public:
  Checkpoint(std::string directory, std::string prefix, Files files)
      : directory_(std::move(directory)), prefix_(std::move(prefix)), files_(std::move(files)) {}

  void read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
            void* dst) const override;
  bool contains(const std::string& name) const override { return find(name) != nullptr; }
  DType stored_dtype(const std::string& name) const override {
    const Place& place = at(name);
    return place.packed ? place.elements : dtype_of(name, place);
  }
  std::optional<WeightFormat> packed_format(const std::string& name) const override {
    const Place* const place = find(name);
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
  const Place* find(const std::string& name) const;
  const Place& at(const std::string& name) const;
  DType dtype_of(const std::string& name, const Place& place) const;

  std::string directory_;
  std::string prefix_;
  Files files_;
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

const Place* Checkpoint::find(const std::string& name) const {
  auto found = files_.tensors.find(name);
  if (found == files_.tensors.end()) found = files_.tensors.find(prefix_ + name);
  return found == files_.tensors.end() ? nullptr : &found->second;
}

const Place& Checkpoint::at(const std::string& name) const {
  if (const Place* place = find(name)) return *place;
  for (const std::string& codes : names_of_codes(name)) {
    if (find(codes) == nullptr) continue;
    throw CheckpointError(fmt::format(
        "{}: {} is quantized ({}), and `quantization_config` of config.json does not say how: "
        "fetch config.json again, or use the checkpoint in 16 bits",
        directory_, in_quotes(name), in_quotes(codes)));
  }
  const std::string also =
      prefix_.empty() ? "" : fmt::format(" (nor {})", in_quotes(prefix_ + name));
  throw CheckpointError(fmt::format(
      "{} has no tensor {}{} among its {} tensors; a file is missing, or config.json belongs "
      "to another model",
      directory_, in_quotes(name), also, files_.tensors.size()));
}

DType Checkpoint::dtype_of(const std::string& name, const Place& place) const {
  if (const auto dtype = usable_dtype(place.tensor.dtype)) return *dtype;
  throw CheckpointError(fmt::format(
      "{}: tensor {} is stored as {}; only weights in BF16, F16 or F32, and quantized ones as "
      "`quantization_config` of config.json says, can be used: convert the checkpoint to one of "
      "them",
      files_.files[place.file].path(), in_quotes(name), in_quotes(place.tensor.dtype)));
}

/// Reads `count` elements at `offset` of the file block by block: from the page cache what is
/// there, else straight from the disk. Blocks end at pages where elements allow it.
void read_large(const SafetensorsFile& file, std::uint64_t offset, std::size_t count, DType from,
                DType to, std::byte* out) {
  const std::size_t element = size_of(from);
  DirectFile::Block block;
  while (count > 0) {
    const std::size_t most = DirectFile::kMostBytes - offset % kPageBytes;
    const std::size_t n = std::min(count, most / element);
    const std::byte* bytes = block.data();
    if (!file.direct().is_cached(offset, n * element)) {
      bytes = file.direct().read(offset, n * element, block).data();
    } else if (from == to) {
      file.read(offset, out, n * element);
      bytes = out;
    } else {
      file.read(offset, block.data(), n * element);
    }
    if (from != to && (offset & (element - 1)) != 0 && bytes != block.data()) {
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
  const Place& place = at(tensor.name);
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
}

void Checkpoint::read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
                      void* dst) const {
  const Place& place = at(tensor.name);
  const SafetensorsFile& file = files_.files[place.file];
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
  if (left * element >= kLargeBytes && file.direct().usable()) {
    read_large(file, offset, left, from, to, static_cast<std::byte*>(dst));
    return;
  }
  if (left * element >= kLargeBytes) file.will_read(offset, left * element);
  if (from == to) {
    file.read(offset, dst, left * element);
    return;
  }
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

/// Tensor -> file name, as the index says. Nothing outside the directory may be named.
std::map<std::string, std::string> read_weight_map(const fs::path& index) {
  const std::string file = index.string();
  const json root = parse_json_object(read_text_file(index, kMaxHeaderBytes), file, kMaxIndexDepth);
  const auto found = root.find("weight_map");
  if (found == root.end() || !found->is_object() || found->empty()) {
    throw CheckpointError(fmt::format(
        "{}: `weight_map` is missing, empty or not an object; fetch the file again", file));
  }
  std::map<std::string, std::string> weight_map;
  for (const auto& [tensor, value] : found->items()) {
    if (!value.is_string()) {
      throw CheckpointError(
          fmt::format("{}: weight_map names no file for tensor {}", file, in_quotes(tensor)));
    }
    const std::string name = value.get<std::string>();
    const fs::path path(name);
    const bool inside =
        path.has_filename() && path.is_relative() && name.find('\0') == std::string::npos &&
        std::none_of(path.begin(), path.end(),
                     [](const fs::path& part) { return part == ".." || part == "."; });
    if (!inside) {
      throw CheckpointError(fmt::format(
          "{}: weight_map puts tensor {} into {}; only files inside the model's directory are "
          "read: correct the index",
          file, in_quotes(tensor), in_quotes(name)));
    }
    weight_map.emplace(tensor, name);
  }
  return weight_map;
}

/// Says why a directory without an index and without the single file cannot be used.
[[noreturn]] void throw_no_weights(const fs::path& directory) {
  std::size_t bins = 0;
  std::size_t tensors = 0;
  std::error_code code;
  for (fs::directory_iterator it(directory, code), end; !code && it != end; it.increment(code)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with("pytorch_model") && name.ends_with(".bin")) ++bins;
    if (name.ends_with(".safetensors")) ++tensors;
  }
  const std::string where = directory.string();
  if (code) throw IoError(fmt::format("{} cannot be listed: {}", where, code.message()));
  if (tensors > 0) {
    throw CheckpointError(
        fmt::format("{} has {} safetensors files but neither {} nor {}; fetch the index too", where,
                    tensors, kSingleFile, kIndexFile));
  }
  if (bins > 0) {
    throw CheckpointError(fmt::format(
        "{0} has its weights only as pytorch_model*.bin ({1} files), which are Python pickles and "
        "can run "
        "code; convert them once: python3 -c \"from transformers import AutoModelForCausalLM as M; "
        "M.from_pretrained('{0}', torch_dtype='auto').save_pretrained('{0}-safetensors', "
        "safe_serialization=True)\" and copy tokenizer.json there",
        where, bins));
  }
  throw CheckpointError(fmt::format(
      "{} has no weights: neither {} nor {} is there; give the directory of a safetensors "
      "checkpoint, or --load-format dummy for random weights",
      where, kSingleFile, kIndexFile));
}

class FilesReader {
 public:
  FilesReader(const fs::path& directory, const Quantization& quantization)
      : directory_(directory), quantization_(quantization) {}

  Files read_single() {
    const std::size_t file = open(kSingleFile);
    for (const auto& [name, tensor] : files_.files[file].header().tensors) {
      add(name, file, tensor);
    }
    return finish();
  }

  Files read_indexed() {
    const auto weight_map = read_weight_map(directory_ / kIndexFile);
    std::set<std::string> names;
    for (const auto& [tensor, name] : weight_map) names.insert(name);
    std::map<std::string, std::size_t> opened;
    for (const std::string& name : names) {
      std::error_code code;
      if (!fs::exists(directory_ / name, code) && !code) {
        throw CheckpointError(fmt::format("{}: {} names the file {}, which is not there; fetch it",
                                          directory_.string(), kIndexFile, in_quotes(name)));
      }
      opened[name] = open(name);
    }
    for (const auto& [tensor, name] : weight_map) {
      const std::size_t file = opened.at(name);
      const auto& tensors = files_.files[file].header().tensors;
      const auto found = tensors.find(tensor);
      if (found == tensors.end()) {
        throw CheckpointError(
            fmt::format("{}: {} says that tensor {} is in {}, but that file lacks it; index and "
                        "files belong to "
                        "different checkpoints: fetch both again",
                        directory_.string(), kIndexFile, in_quotes(tensor), in_quotes(name)));
      }
      add(tensor, file, found->second);
    }
    warn_of_unindexed();
    return finish();
  }

 private:
  /// The index alone says where a tensor is; what it leaves out is as good as not there.
  void warn_of_unindexed() {
    std::set<std::string> names;
    for (const SafetensorsFile& file : files_.files) {
      for (const auto& [name, tensor] : file.header().tensors) {
        const auto packed = packed_tensor(name, tensor, file.path());
        if (!files_.tensors.contains(packed ? packed->matrix : name)) names.insert(name);
      }
    }
    if (names.empty()) return;
    files_.warnings.push_back(fmt::format(
        "{}: the files hold {} tensors that {} does not name, such as {}: they are not used; "
        "fetch index and files again if they belong to the model",
        directory_.string(), names.size(), kIndexFile, in_quotes(*names.begin())));
  }
  void add(const std::string& name, std::size_t file, const StoredTensor& tensor) {
    const SafetensorsFile& opened = files_.files[file];
    const auto packed = packed_tensor(name, tensor, opened.path());
    Place place{file, tensor, {}};
    if (packed) {
      place.packed = packed->format;
      place.elements = elements_of_packed(opened.header(), opened.path());
    }
    const std::string& matrix = packed ? packed->matrix : name;
    if (files_.tensors.emplace(matrix, std::move(place)).second) return;
    throw CheckpointError(
        fmt::format("{}: tensor {} is there twice, packed and not, or in two formats; pack the "
                    "checkpoint again",
                    opened.path(), in_quotes(matrix)));
  }
  std::size_t open(const std::string& name) {
    files_.files.emplace_back(directory_ / name);
    return files_.files.size() - 1;
  }
  Files finish() {
    warn_of_refusal();
    join_quantized();
    return std::move(files_);
  }

  /// Puts a quantized matrix in the place of the tensors of which it is made.
  void join_quantized() {
    if (quantization_.layout == Quantization::Layout::kNone) return;
    std::vector<TensorInFile> tensors;
    for (const auto& [name, place] : files_.tensors) {
      // Files and headers keep their places in memory.
      const SafetensorsFile& file = files_.files[place.file];
      const auto found = file.header().tensors.find(name);
      if (found != file.header().tensors.end()) tensors.push_back({name, &file, &found->second});
    }
    QuantizedTensors found = find_quantized(quantization_, tensors);
    Place joined;
    if (!found.matrices.empty()) {
      const auto used = files_.tensors.find(found.used.front());
      joined.file = used->second.file;
    }
    for (const std::string& name : found.used) files_.tensors.erase(name);
    joined.elements = elements_beside();
    for (FoundMatrix& matrix : found.matrices) {
      joined.packed = matrix.matrix->format();
      joined.quantized = std::move(matrix.matrix);
      if (files_.tensors.emplace(matrix.name, joined).second) continue;
      throw CheckpointError(
          fmt::format("{}: tensor {} is there twice, quantized and not; fetch "
                      "the checkpoint again",
                      directory_.string(), in_quotes(matrix.name)));
    }
    files_.quantization = quantization_.text();
  }

  /// The type of most of the elements beside the quantized matrices: that in which the model was.
  DType elements_beside() const {
    std::map<DType, std::uint64_t> bytes;
    for (const auto& [name, place] : files_.tensors) {
      const auto dtype = usable_dtype(place.tensor.dtype);
      if (dtype) bytes[*dtype] += place.tensor.end - place.tensor.begin;
    }
    const auto most =
        std::ranges::max_element(bytes, {}, [](const auto& of_type) { return of_type.second; });
    return most == bytes.end() ? DType::kBFloat16 : most->first;
  }

  /// One line for all files of the directory.
  void warn_of_refusal() const {
    for (const SafetensorsFile& file : files_.files) {
      if (file.direct().usable()) continue;
      log_warning(fmt::format("O_DIRECT is refused for {} ({}); buffered reads are used",
                              file.path(), file.direct().refusal()));
      return;
    }
  }

  fs::path directory_;
  Quantization quantization_;
  Files files_;
};

}  // namespace

std::unique_ptr<WeightSource> open_checkpoint(const fs::path& directory, const std::string& prefix,
                                              const Quantization& quantization) {
  std::error_code code;
  if (!fs::is_directory(directory, code)) {
    throw CheckpointError(fmt::format("{} is not a directory{}", directory.string(),
                                      code ? ": " + code.message() : std::string()));
  }
  // The reference's order (transformers, `_get_resolved_checkpoint_files`): the single file first.
  const bool indexed = fs::exists(directory / kIndexFile, code);
  const bool single = fs::is_regular_file(directory / kSingleFile, code) ||
                      (!indexed && fs::exists(directory / kSingleFile, code));
  if (!single && !indexed) throw_no_weights(directory);
  FilesReader reader(directory, quantization);
  Files files = single ? reader.read_single() : reader.read_indexed();
  if (single && indexed) {
    files.warnings.push_back(
        fmt::format("{} holds both {} and {}: {} is used and the index with its files is not, as "
                    "Hugging Face transformers does; remove the one that is not meant",
                    directory.string(), kSingleFile, kIndexFile, kSingleFile));
  }
  return std::make_unique<Checkpoint>(directory.string(), prefix, std::move(files));
}

}  // namespace zi
