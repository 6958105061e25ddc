#include "synthetic_checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>

#include "base/system_error.h"
#include "zero_infer/bytes.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"

namespace zi::test {
namespace {

using nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr std::size_t kPieceBytes = std::size_t{4} << 20;

class OutputFile {
 public:
  explicit OutputFile(const fs::path& path) : path_(path), file_(path, std::ios::binary) {
    if (!file_) fail("created");
  }
  void write(const void* data, std::size_t bytes) {
    if (!file_.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes))) {
      fail("written");
    }
  }
  void close() {
    file_.close();
    if (!file_) fail("written");
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw IoError(fmt::format("{} cannot be {}: {}", path_.string(), what, system_message(errno)));
  }
  fs::path path_;
  std::ofstream file_;
};

std::string header_of(std::span<const TensorSpec> tensors, const SyntheticOptions& options) {
  const char* name = options.dtype == DType::kFloat32   ? "F32"
                     : options.dtype == DType::kFloat16 ? "F16"
                                                        : "BF16";
  ordered_json header;
  header["__metadata__"]["format"] = "pt";
  std::size_t begin = 0;
  for (const TensorSpec& tensor : tensors) {
    const std::size_t end =
        begin + static_cast<std::size_t>(tensor.elements()) * size_of(options.dtype);
    header[options.prefix + tensor.name] = {
        {"dtype", name}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text = header.dump();
  text.resize(align_up(text.size(), 8), ' ');  // as the reference writer pads
  return text;
}

void write_file(const fs::path& path, std::span<const TensorSpec> tensors,
                const SyntheticOptions& options, const WeightSource& values) {
  OutputFile file(path);
  const std::string start = safetensors_bytes(header_of(tensors, options), "");
  file.write(start.data(), start.size());
  const std::size_t element = size_of(options.dtype);
  const auto most = static_cast<std::int64_t>(kPieceBytes / element);
  std::vector<std::byte> piece(kPieceBytes);
  for (const TensorSpec& tensor : tensors) {
    for (std::int64_t first = 0; first < tensor.elements(); first += most) {
      const std::int64_t count = std::min(most, tensor.elements() - first);
      values.read(tensor, first, count, options.dtype, piece.data());
      file.write(piece.data(), static_cast<std::size_t>(count) * element);
    }
  }
  file.close();
}

std::size_t bytes_of(std::span<const TensorSpec> tensors, DType dtype) {
  std::size_t elements = 0;
  for (const TensorSpec& tensor : tensors) {
    elements += static_cast<std::size_t>(tensor.elements());
  }
  return elements * size_of(dtype);
}

/// Consecutive groups of about the same bytes, none of them empty.
std::vector<std::span<const TensorSpec>> group(std::span<const TensorSpec> tensors, int shards,
                                               DType dtype) {
  const std::size_t total = bytes_of(tensors, dtype);
  const auto count = static_cast<std::size_t>(shards);
  std::vector<std::span<const TensorSpec>> groups;
  std::size_t begin = 0;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    bytes += bytes_of(tensors.subspan(i, 1), dtype);
    const std::size_t groups_left = count - groups.size() - 1;
    const std::size_t tensors_left = tensors.size() - i - 1;
    const bool full = bytes >= total / count * (groups.size() + 1);
    if ((full && groups_left > 0) || tensors_left == groups_left) {
      groups.push_back(tensors.subspan(begin, i + 1 - begin));
      begin = i + 1;
    }
  }
  if (begin < tensors.size()) groups.push_back(tensors.subspan(begin));
  return groups;
}

}  // namespace

void write_text(const fs::path& path, std::string_view text) {
  OutputFile file(path);
  file.write(text.data(), text.size());
  file.close();
}

std::string safetensors_bytes(std::string_view header, std::string_view data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return bytes.append(header).append(data);
}

std::vector<TensorSpec> bloom_tensors(const ModelConfig& config) {
  const std::int64_t h = config.hidden;
  std::vector<TensorSpec> tensors = {{"word_embeddings.weight", {config.vocabulary, h}}};
  const auto norm = [&](const std::string& name) {
    tensors.push_back({name + ".weight", {h}});
    tensors.push_back({name + ".bias", {h}});
  };
  const auto linear = [&](const std::string& name, std::int64_t out, std::int64_t in) {
    tensors.push_back({name + ".weight", {out, in}});
    tensors.push_back({name + ".bias", {out}});
  };
  norm("word_embeddings_layernorm");
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string block = fmt::format("h.{}.", layer);
    norm(block + "input_layernorm");
    linear(block + "self_attention.query_key_value", 3 * h, h);
    linear(block + "self_attention.dense", h, h);
    norm(block + "post_attention_layernorm");
    linear(block + "mlp.dense_h_to_4h", config.ffn, h);
    linear(block + "mlp.dense_4h_to_h", h, config.ffn);
  }
  norm("ln_f");
  return tensors;
}

void write_synthetic_checkpoint(const fs::path& config_json, const fs::path& out,
                                const SyntheticOptions& options) {
  const fs::path target = out / "config.json";
  fs::create_directories(out);
  if (!fs::exists(target) || !fs::equivalent(config_json, target)) {
    fs::copy_file(config_json, target, fs::copy_options::overwrite_existing);
  }
  if (options.tokenizer) {
    fs::copy_file(*options.tokenizer, out / "tokenizer.json", fs::copy_options::overwrite_existing);
  }
  const std::vector<TensorSpec> tensors = bloom_tensors(ModelConfig::load(out));
  if (options.shards < 1 || static_cast<std::size_t>(options.shards) > tensors.size()) {
    throw ConfigError(fmt::format("{} files cannot be made of {} tensors; use 1 to {}",
                                  options.shards, tensors.size(), tensors.size()));
  }
  const std::size_t needed = bytes_of(tensors, options.dtype);
  const std::uintmax_t available = fs::space(out).available;
  if (needed > available) {
    throw ConfigError(fmt::format(
        "{}: the checkpoint needs {} and the disk has {} left; make room or use another directory",
        out.string(), format_bytes(static_cast<double>(needed)),
        format_bytes(static_cast<double>(available))));
  }
  const auto values = make_dummy_weights(options.seed, options.dtype);
  if (options.single) {
    write_file(out / "model.safetensors", tensors, options, *values);
    return;
  }
  ordered_json index;
  index["metadata"]["total_size"] = needed;
  const auto groups = group(tensors, options.shards, options.dtype);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, groups.size());
    write_file(out / name, groups[i], options, *values);
    for (const TensorSpec& tensor : groups[i]) {
      index["weight_map"][options.prefix + tensor.name] = name;
    }
  }
  write_text(out / "model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace zi::test
