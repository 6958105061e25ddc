#include "json_file.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <unordered_set>
#include <vector>

#include "base/system_error.h"
#include "zero_infer/error.h"

namespace zi {

using nlohmann::json;

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kMost = 120;
  std::string out = "`";
  for (char c : text.substr(0, kMost)) {
    out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  }
  return out + (text.size() > kMost ? "...`" : "`");
}

json parse_json_object(std::string_view text, const std::string& file, std::size_t max_depth) {
  std::vector<std::unordered_set<std::string>> keys;  // of each object that is open
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
        keys.emplace_back();
        [[fallthrough]];
      case json::parse_event_t::array_start:
        if (static_cast<std::size_t>(depth) >= max_depth) {
          throw CheckpointError(fmt::format(
              "{}: JSON is nested more than {} deep; the file is damaged or no file of a "
              "checkpoint",
              file, max_depth));
        }
        break;
      case json::parse_event_t::key:
        if (!keys.back().insert(parsed.get_ref<const std::string&>()).second) {
          throw CheckpointError(
              fmt::format("{}: {} stands there twice; which of the two is meant cannot be known: "
                          "the file is damaged",
                          file, in_quotes(parsed.get_ref<const std::string&>())));
        }
        break;
      case json::parse_event_t::object_end:
        keys.pop_back();
        break;
      default:
        break;
    }
    return true;
  };
  json root;
  try {
    root = json::parse(text.begin(), text.end(), watch);
  } catch (const json::exception& error) {
    throw CheckpointError(fmt::format("{}: not valid JSON: {}; the file is damaged: fetch it again",
                                      file, in_quotes(error.what())));
  }
  if (!root.is_object()) {
    throw CheckpointError(
        fmt::format("{}: a JSON object was expected, not {}", file, root.type_name()));
  }
  return root;
}

std::string read_text_file(const std::filesystem::path& path, std::size_t max_bytes) {
  std::error_code code;
  const std::uintmax_t bytes = std::filesystem::file_size(path, code);
  if (code == std::errc::no_such_file_or_directory || code == std::errc::not_a_directory) {
    throw CheckpointError(fmt::format("{} does not exist", path.string()));
  }
  if (code) {
    throw IoError(fmt::format("{} cannot be read: {}", path.string(), code.message()));
  }
  if (bytes > max_bytes) {
    throw CheckpointError(fmt::format("{} has {} bytes; a file of this kind has at most {}",
                                      path.string(), bytes, max_bytes));
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text(static_cast<std::size_t>(bytes), '\0');
  if (!file || !file.read(text.data(), static_cast<std::streamsize>(bytes))) {
    throw IoError(fmt::format("{} cannot be read: {}", path.string(),
                              errno != 0 ? system_message(errno) : "it became shorter meanwhile"));
  }
  return text;
}

}  // namespace zi
