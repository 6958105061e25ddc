#include "checkpoint/checkpoint_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "base/json_file.h"
#include "base/printable_text.h"
#include "checkpoint/packed_tensors.h"
#include "checkpoint/quantized_tensors.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr std::size_t kMaxIndexDepth = 8;

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

  CheckpointTensors read_single() {
    const std::size_t file = open(kSingleFile);
    for (const auto& [name, tensor] : files_.files[file].header().tensors) {
      add(name, file, tensor);
    }
    return finish();
  }

  CheckpointTensors read_indexed() {
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
    CheckpointTensor place{file, tensor, {}};
    if (packed) {
      place.packed = packed->format;
      place.elements = elements_of_packed(opened.header(), packed->format, opened.path());
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
  CheckpointTensors finish() {
    warn_of_refusal();
    join_quantized();
    return std::move(files_);
  }

  /// Puts a quantized matrix in the place of the tensors of which it is made.
  void join_quantized() {
    std::vector<TensorInFile> tensors;
    for (const auto& [name, place] : files_.tensors) {
      // Files and headers keep their places in memory.
      const SafetensorsFile& file = files_.files[place.file];
      const auto found = file.header().tensors.find(name);
      if (found != file.header().tensors.end()) tensors.push_back({name, &file, &found->second});
    }
    QuantizedTensors found = find_quantized(quantization_, tensors);
    if (quantization_.layout == Quantization::Layout::kNone) return;
    CheckpointTensor joined;
    for (const std::string& name : found.used) files_.tensors.erase(name);
    joined.elements = elements_beside();
    for (FoundMatrix& matrix : found.matrices) {
      joined.file = static_cast<std::size_t>(&matrix.matrix->file() - files_.files.data());
      joined.packed = matrix.matrix->format();
      joined.quantized = std::move(matrix.matrix);
      if (files_.tensors.emplace(matrix.name, joined).second) continue;
      throw CheckpointError(
          fmt::format("{}: tensor {} is there twice, quantized and not; fetch "
                      "the checkpoint again",
                      files_.files[joined.file].path(), in_quotes(matrix.name)));
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
  CheckpointTensors files_;
};

}  // namespace

CheckpointTensors open_tensors(const fs::path& directory, const Quantization& quantization) {
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
  CheckpointTensors files = single ? reader.read_single() : reader.read_indexed();
  if (single && indexed) {
    files.warnings.push_back(
        fmt::format("{} holds both {} and {}: {} is used and the index with its files is not, as "
                    "Hugging Face transformers does; remove the one that is not meant",
                    directory.string(), kSingleFile, kIndexFile, kSingleFile));
  }
  return files;
}

}  // namespace zi
