#include "checkpoint/checkpoint_files.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>

namespace zi {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kNames[] = {"config.json",
                                       "generation_config.json",
                                       "tokenizer.json",
                                       "vocab.json",
                                       "tokenizer_config.json",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       "merges.txt",
                                       "vocab.txt",
                                       "chat_template.jinja",
                                       "chat_template.json",
                                       "params.json"};
constexpr std::string_view kEnds[] = {".safetensors", ".index.json", ".bin",   ".pt",
                                      ".pth",         ".gguf",       ".model", ".ckpt",
                                      ".msgpack",     ".h5",         ".onnx"};
/// An index may name files in folders of the directory.
constexpr int kMostDepth = 2;

bool belongs_to_checkpoint(const std::string& name) {
  return std::ranges::find(kNames, name) != std::end(kNames) ||
         std::ranges::any_of(kEnds, [&](std::string_view end) { return name.ends_with(end); });
}

}  // namespace

std::vector<fs::path> checkpoint_files(const fs::path& directory) {
  std::vector<fs::path> files;
  std::error_code error;
  fs::recursive_directory_iterator entry(directory, fs::directory_options::skip_permission_denied,
                                         error);
  for (const fs::recursive_directory_iterator end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (entry.depth() >= kMostDepth || name.starts_with('.')) entry.disable_recursion_pending();
    if (belongs_to_checkpoint(name)) files.push_back(entry->path());
  }
  return files;
}

}  // namespace zi
