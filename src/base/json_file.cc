#include "base/json_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <unordered_set>
#include <vector>

#include "base/file_descriptor.h"
#include "base/system_error.h"
#include "zero_infer/error.h"

namespace zi {

using nlohmann::json;

namespace {

/// What Python's json writes and JSON does not have, at the byte where reading failed: the key and
/// the word. Empty where something else is wrong.
std::string python_number(std::string_view text, std::size_t byte) {
  constexpr std::size_t kLongest = 9;  // -Infinity
  const std::size_t end = std::min(byte, text.size());
  for (std::size_t at = end - std::min(end, kLongest); at < end; ++at) {
    for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
      if (!text.substr(at).starts_with(word)) continue;
      const std::string_view before = text.substr(0, at);
      const std::size_t colon = before.find_last_not_of(" \t\r\n");
      const std::size_t close = colon == std::string_view::npos ? colon : before.rfind('"', colon);
      if (close == std::string_view::npos || close == 0 || before[colon] != ':') {
        return fmt::format("there is {}", word);
      }
      const std::size_t open = before.rfind('"', close - 1);
      const std::string_view key =
          open == std::string_view::npos ? "" : before.substr(open + 1, close - open - 1);
      return fmt::format("{} is {}", in_quotes(key), word);
    }
  }
  return {};
}

}  // namespace

json parse_json_object(std::string_view text, const std::string& file, std::size_t max_depth) {
  std::vector<std::unordered_set<std::string>> keys;  // of each object that is open
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
        keys.emplace_back();
        [[fallthrough]];
      case json::parse_event_t::array_start:
        if (static_cast<std::size_t>(depth) >= max_depth) {
          throw CheckpointError(
              fmt::format("{}: JSON is nested more than {} deep; the file is damaged, or is not "
                          "part of a checkpoint",
                          file, max_depth));
        }
        break;
      case json::parse_event_t::key:
        if (!keys.back().insert(parsed.get_ref<const std::string&>()).second) {
          throw CheckpointError(fmt::format(
              "{}: {} is there twice, and which one is meant cannot be known: the file is damaged",
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
  } catch (const json::parse_error& error) {
    if (const std::string number = python_number(text, error.byte); !number.empty()) {
      throw CheckpointError(fmt::format(
          "{}: not valid JSON: {}, which JSON does not have: put a number there, or null", file,
          number));
    }
    throw CheckpointError(fmt::format("{}: not valid JSON: {}; the file is damaged: fetch it again",
                                      file, in_quotes(error.what())));
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
  const std::string name = path.string();
  // Without O_NONBLOCK, opening a pipe of this name would wait for a writer; for a file it changes
  // nothing.
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!file.is_open()) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) {
      throw CheckpointError(fmt::format("{} does not exist", name));
    }
    throw IoError(fmt::format("{} cannot be read: {}", name, system_message(error)));
  }
  struct stat facts {};
  if (::fstat(file.get(), &facts) != 0) {
    throw IoError(fmt::format("{} cannot be examined: {}", name, system_message(errno)));
  }
  if (!S_ISREG(facts.st_mode)) throw CheckpointError(fmt::format("{} is not a file", name));
  const auto bytes = static_cast<std::uint64_t>(facts.st_size);
  if (bytes > max_bytes) {
    throw CheckpointError(
        fmt::format("{} has {} bytes; a file of this kind has at most {}", name, bytes, max_bytes));
  }
  std::string text(static_cast<std::size_t>(bytes), '\0');
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t got = ::read(file.get(), text.data() + done, text.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw IoError(
          fmt::format("{} cannot be read: {}", name,
                      got < 0 ? system_message(errno) : "it became shorter while it was read"));
    }
    done += static_cast<std::size_t>(got);
  }
  refuse_lfs_pointer(text, name);
  return text;
}

void refuse_lfs_pointer(std::string_view start, const std::string& file) {
  if (!start.starts_with("version ")) return;
  throw CheckpointError(fmt::format(
      "{} is a Git LFS pointer and not the file itself; run `git lfs pull` there", file));
}

}  // namespace zi
