#include "convert/pack_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/json_file.h"
#include "base/printable_text.h"
#include "base/progress.h"
#include "checkpoint/checkpoint_files.h"
#include "checkpoint/family_configs.h"
#include "checkpoint/packed_tensors.h"
#include "convert/new_directory.h"
#include "engine/open_model.h"
#include "offload/read_threads.h"
#include "offload/shard_reader.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

/// Read and packed while the piece before it is written.
constexpr std::size_t kPieceBytes = std::size_t{32} << 20;
constexpr std::size_t kMaxConfigBytes = std::size_t{16} << 20;
/// Of a file that is copied: a tokenizer has some dozen MB.
constexpr std::uintmax_t kMostCopied = std::uintmax_t{1} << 30;
constexpr int kFewestThreads = 4;
constexpr int kMostThreads = 16;

/// A tensor of the new checkpoint.
struct Tensor {
  TensorSpec spec;     // as the model names it
  std::string stored;  // as the checkpoint does, with its prefix
  WeightFormat format;

  bool is_matrix() const { return spec.shape.size() == 2; }
  /// As the only matrix of a layout for one rank, which is how its bytes are read.
  UnitSpec unit() const { return {.name = spec.name, .matrices = {spec}, .vectors = {}}; }
  std::uint64_t bytes() const {
    if (!format.packed())
      return static_cast<std::uint64_t>(spec.elements()) * size_of(format.dtype);
    return static_cast<std::uint64_t>(spec.shape[0]) * format.row_bytes(spec.shape[1]);
  }
  std::string name() const { return format.packed() ? packed_name(stored, format) : stored; }
  ordered_json header(std::uint64_t begin) const {
    constexpr std::array kTypes = {"F32", "F16", "BF16"};  // by DType
    if (!format.packed()) {
      return {{"dtype", kTypes.at(static_cast<std::size_t>(format.dtype))},
              {"shape", spec.shape},
              {"data_offsets", {begin, begin + bytes()}}};
    }
    return {{"dtype", "U8"},
            {"shape", {spec.shape[0], format.row_bytes(spec.shape[1])}},
            {"data_offsets", {begin, begin + bytes()}}};
  }
};

/// All that the model uses, in the order of a pass.
std::vector<Tensor> tensors_of(const OpenModel& open) {
  const ModelSpec& spec = open.model->spec();
  const std::vector<std::string> names = open.source->names();
  const std::set<std::string> there(names.begin(), names.end());
  std::vector<Tensor> tensors;
  std::set<std::string> taken;
  const auto add = [&](const std::vector<TensorSpec>& specs, const WeightFormat* matrices) {
    for (const TensorSpec& t : specs) {
      if (!taken.insert(t.name).second) continue;  // a tied head
      const bool packed = matrices != nullptr && matrices->packed();
      tensors.push_back({t, there.contains(t.name) ? t.name : spec.prefix + t.name,
                         packed ? *matrices : WeightFormat(open.source->stored_dtype(t.name))});
    }
  };
  add({spec.embedding}, &open.head_format);
  add(spec.vectors, nullptr);
  for (const UnitSpec& block : spec.blocks) {
    add(block.matrices, &open.block_format);
    add(block.vectors, nullptr);
  }
  add(spec.head.matrices, &open.head_format);
  add(spec.head.vectors, nullptr);
  return tensors;
}

using Group = std::span<const Tensor>;

std::uint64_t bytes_of(Group tensors) {
  std::uint64_t bytes = 0;
  for (const Tensor& t : tensors) bytes += t.bytes();
  return bytes;
}

/// Runs of tensors, each of about `file_bytes`.
std::vector<Group> files_of(const std::vector<Tensor>& tensors, std::uint64_t file_bytes) {
  std::vector<Group> files;
  std::size_t begin = 0;
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (i > begin && bytes + tensors[i].bytes() > file_bytes) {
      files.push_back(Group(tensors).subspan(begin, i - begin));
      begin = i;
      bytes = 0;
    }
    bytes += tensors[i].bytes();
  }
  files.push_back(Group(tensors).subspan(begin));
  return files;
}

/// Length word and JSON, up to a multiple of a page.
std::string header_of(Group tensors, DType elements) {
  ordered_json header;
  const bool first_version = std::ranges::all_of(tensors, [](const Tensor& t) {
    return !t.format.packed() || rows_version(t.format) == std::string_view(kFirstRowsVersion);
  });
  header["__metadata__"] = {{kRowsVersionKey, first_version ? kFirstRowsVersion : kRowsVersion},
                            {kElementsKey, std::string(name_of(elements))}};
  std::uint64_t begin = 0;
  for (const Tensor& t : tensors) {
    header[t.name()] = t.header(begin);
    begin += t.bytes();
  }
  std::string text = header.dump();
  text.resize(align_up(text.size() + 8, kPageBytes) - 8, ' ');
  std::string start;
  for (int i = 0; i < 8; ++i) start += static_cast<char>(text.size() >> (8 * i) & 0xffu);
  return start + text;
}

/// Whether a run reads the file besides config.json and the weights, or a license asks to keep it.
bool is_copied(const fs::path& file, const std::vector<fs::path>& of_checkpoint) {
  const std::string name = file.filename().string();
  if (name.starts_with("LICENSE") || name.starts_with("NOTICE")) return true;
  if (name == "config.json" || name == "params.json") return false;
  const std::string end = file.extension().string();
  const bool text = end == ".json" || end == ".txt" || end == ".jinja" || end == ".model";
  return text && !name.ends_with(".index.json") &&
         std::ranges::find(of_checkpoint, file) != of_checkpoint.end();
}

/// Writes one checkpoint.
class Packer {
 public:
  Packer(const PackOptions& options, const OpenModel& open, std::function<int()> stop_signal,
         std::uint64_t file_bytes)
      : open_(open),
        stop_signal_(std::move(stop_signal)),
        tensors_(tensors_of(open)),
        files_(files_of(tensors_, file_bytes)),
        out_(options.output, fmt::format("; the packed checkpoint takes {}", size_text())),
        threads_(std::clamp(static_cast<int>(std::thread::hardware_concurrency()), kFewestThreads,
                            kMostThreads)),
        progress_("packing", static_cast<std::size_t>(bytes_of(tensors_)), Progress::Unit::kBytes,
                  !options.quiet) {}

  int run() {
    write_other_files();
    nlohmann::json weight_map;
    for (std::size_t i = 0; i < files_.size(); ++i) {
      const std::string name = files_.size() == 1 ? "model.safetensors"
                                                  : fmt::format("model-{:05}-of-{:05}.safetensors",
                                                                i + 1, files_.size());
      if (const int signal = write_weights(name, files_[i])) return signal;
      for (const Tensor& t : files_[i]) weight_map[t.name()] = name;
    }
    if (files_.size() > 1) {
      write_text("model.safetensors.index.json",
                 nlohmann::json{{"metadata", {{"total_size", bytes_of(tensors_)}}},
                                {"weight_map", weight_map}}
                         .dump(2) +
                     "\n");
    }
    // Last: without it no directory is taken for a checkpoint.
    write_text("config.json", config_text());
    out_.publish();
    return 0;
  }

  std::string size_text() const { return format_memory(static_cast<double>(bytes_of(tensors_))); }
  std::size_t file_count() const { return files_.size(); }

 private:
  /// Returns the signal that came, or 0.
  int write_weights(const std::string& name, Group tensors) {
    const std::string header = header_of(tensors, open_.stored_dtype);
    NewDirectory::File file = out_.make(name, header.size() + bytes_of(tensors));
    file.write(header);
    for (const Tensor& t : tensors) {
      if (const int signal = write(file, t)) return signal;
    }
    file.close();
    return 0;
  }

  int write(NewDirectory::File& file, const Tensor& tensor) {
    const auto bytes = static_cast<std::size_t>(tensor.bytes());
    if (!tensor.is_matrix()) {
      memory_[0].resize(std::max(memory_[0].size(), bytes));
      open_.source->read(tensor.spec, 0, tensor.spec.elements(), tensor.format.dtype,
                         memory_[0].data());
      file.write(std::span<const std::byte>(memory_[0]).first(bytes));
      progress_.add(bytes);
      return 0;
    }
    reader_.reset();
    layout_.emplace(tensor.unit(), tensor.format, 1);
    reader_.emplace(*open_.source, *layout_, 0);
    struct Piece {
      std::size_t bytes = 0;
      ReadThreads::Ticket ticket = 0;
    };
    std::array<Piece, 2> pieces;
    const auto start = [&](std::size_t at) {
      Piece& piece = pieces[at / kPieceBytes % 2];
      std::vector<std::byte>& memory = memory_[at / kPieceBytes % 2];
      piece.bytes = std::min(kPieceBytes, bytes - at);
      memory.resize(std::max(memory.size(), piece.bytes));
      piece.ticket = start_shard_read(threads_, *reader_, at, std::span(memory).first(piece.bytes));
    };
    start(0);
    int signal = 0;
    for (std::size_t at = 0; at < bytes && signal == 0; at += kPieceBytes) {
      if (at + kPieceBytes < bytes) start(at + kPieceBytes);
      const std::size_t which = at / kPieceBytes % 2;
      threads_.wait(pieces[which].ticket);
      file.write(std::span<const std::byte>(memory_[which]).first(pieces[which].bytes));
      progress_.add(pieces[which].bytes);
      if (stop_signal_) signal = stop_signal_();
    }
    threads_.finish();
    return signal;
  }

  void write_text(const std::string& name, const std::string& text) {
    NewDirectory::File file = out_.make(name, text.size());
    file.write(text);
    file.close();
  }

  std::string config_text() const {
    const fs::path path = open_.directory / "config.json";
    const std::string text = read_text_file(path, kMaxConfigBytes);
    parse_json_object(text, path.string());  // refuses what the next line would take
    ordered_json config = ordered_json::parse(text);
    const auto stored = [this](const WeightFormat& format, const TensorSpec& matrix) {
      return format.packed() ? name_of(format)
                             : std::string(name_of(open_.source->stored_dtype(matrix.name)));
    };
    const ModelSpec& spec = open_.model->spec();
    config["quantization_config"] = {
        {"quant_method", kPackMethod},
        {"version", kPackVersion},
        {"weight_format", stored(open_.block_format, spec.blocks.front().matrices.front())},
        {"head_format", stored(open_.head_format, spec.head.matrices.front())}};
    return config.dump(2) + "\n";
  }

  void write_other_files() {
    const std::vector<fs::path> of_checkpoint = checkpoint_files(open_.directory);
    copy_from(open_.directory, "", [&](const fs::path& f) { return is_copied(f, of_checkpoint); });
    const std::string templates = "additional_chat_templates";
    std::error_code code;
    if (!fs::is_directory(open_.directory / templates, code)) return;
    out_.make_folder(templates);
    copy_from(open_.directory / templates, templates + "/",
              [](const fs::path& f) { return f.extension() == ".jinja"; });
  }

  void copy_from(const fs::path& folder, const std::string& to, const auto& wanted) {
    std::error_code code;
    for (fs::directory_iterator entry(folder, code), end; !code && entry != end;
         entry.increment(code)) {
      if (!wanted(entry->path()) || !entry->is_regular_file(code)) continue;
      write_text(to + entry->path().filename().string(),
                 read_text_file(entry->path(), kMostCopied));
    }
    if (code) {
      throw IoError(fmt::format("{} cannot be read: {}", folder.string(), code.message()));
    }
  }

  const OpenModel& open_;
  std::function<int()> stop_signal_;
  std::vector<Tensor> tensors_;
  std::vector<Group> files_;
  NewDirectory out_;
  // Used by the threads: they end first.
  std::array<std::vector<std::byte>, 2> memory_;  // of the pieces
  std::optional<PartitionLayout> layout_;
  std::optional<ShardReader> reader_;
  ReadThreads threads_;
  Progress progress_;
};

}  // namespace

int pack_checkpoint(const PackOptions& options, const std::function<int()>& stop_signal,
                    std::uint64_t file_bytes) {
  RunConfig config;
  config.model = options.model;
  config.weight_format = options.weight_format;
  config.head_format = options.head_format;
  const OpenModel open = open_model(config);
  for (const std::string& line : open.warnings) log_warning(line);
  if (!open.other_formats.empty()) {
    const auto& [matrix, format] = *open.other_formats.begin();
    throw CheckpointError(fmt::format(
        "{}: {} is stored in {}, other matrices of the blocks in {}: a checkpoint of several "
        "formats is not packed; use it as it is",
        options.model, in_quotes(matrix), describe(format), describe(open.block_format)));
  }
  Packer packer(options, open, stop_signal, file_bytes);
  int signal = 0;
  try {
    signal = packer.run();
  } catch (const IoError& error) {
    throw PackFailed(error.what());
  }
  if (signal == 0) {
    log_info(fmt::format("{}: {} in {}, head and embedding in {}, {} file{}",
                         options.output.string(), packer.size_text(), describe(open.block_format),
                         describe(open.head_format), packer.file_count(),
                         packer.file_count() == 1 ? "" : "s"));
  }
  return signal;
}

}  // namespace zi
