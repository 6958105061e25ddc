#include <fmt/format.h>
#include <fmt/ranges.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <optional>
#include <regex>
#include <string>
#include <vector>

#include "base/json_file.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxRefBytes = 4096;

/// The home directory of a user, or of this one where `user` is empty; nothing when there is none.
std::optional<std::string> home_of(const std::string& user) {
  const char* const home = std::getenv("HOME");
  if (user.empty() && home != nullptr) return home;
  std::vector<char> memory(1 << 14);
  passwd entry{};
  passwd* found = nullptr;
  const int error = user.empty()
                        ? ::getpwuid_r(::getuid(), &entry, memory.data(), memory.size(), &found)
                        : ::getpwnam_r(user.c_str(), &entry, memory.data(), memory.size(), &found);
  if (error != 0 || found == nullptr) return std::nullopt;
  return std::string(entry.pw_dir);
}

/// `~` and `~user` at the start become a home directory, as Python's os.path.expanduser does it; an
/// unknown user stays as it is.
std::string with_home(const std::string& text) {
  if (!text.starts_with('~')) return text;
  const std::size_t end = std::min(text.find('/'), text.size());
  const std::optional<std::string> home = home_of(text.substr(1, end - 1));
  return home ? *home + text.substr(end) : text;
}

/// `$NAME` and `${NAME}` become the variable's value, as Python's os.path.expandvars does it;
/// variables that are not set stay as they are.
std::string with_variables(const std::string& text) {
  static const std::regex variable(R"(\$(?:(\w+)|\{([^}]*)\}))");
  std::string expanded;
  auto rest = text.cbegin();
  for (std::sregex_iterator match(text.begin(), text.end(), variable), end; match != end; ++match) {
    const std::smatch& m = *match;
    const char* const value = std::getenv((m[1].matched ? m[1] : m[2]).str().c_str());
    expanded.append(rest, m[0].first);
    expanded += value != nullptr ? std::string(value) : m[0].str();
    rest = m[0].second;
  }
  return expanded.append(rest, text.cend());
}

/// An environment variable that is set and not empty.
std::optional<std::string> environment(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

/// Where huggingface_hub keeps models, by its precedence. It expands what HF_HOME and the like say
/// by `os.path.expandvars(os.path.expanduser(value))`, and then the place of the cache once more.
std::optional<fs::path> hub_cache() {
  const auto expanded = [](const std::string& text) { return with_variables(with_home(text)); };
  if (const auto cache = environment("HF_HUB_CACHE")) return expanded(*cache);
  if (const auto cache = environment("HUGGINGFACE_HUB_CACHE")) return expanded(*cache);
  std::string home;
  if (const auto hub = environment("HF_HOME")) {
    home = *hub;
  } else if (const auto caches = environment("XDG_CACHE_HOME")) {
    home = *caches + "/huggingface";
  } else if (const auto user = environment("HOME")) {
    home = *user + "/.cache/huggingface";
  } else {
    return std::nullopt;
  }
  return expanded(expanded(home) + "/hub");
}

/// `name` or `organisation/name` as the hub allows them; anything else is a path.
bool is_hub_name(const std::string& model) {
  if (model.empty() || std::count(model.begin(), model.end(), '/') > 1) return false;
  if (model.front() == '/' || model.back() == '/') return false;
  if (model.front() == '.' || model.front() == '~' || model.find("..") != std::string::npos) {
    return false;
  }
  return std::all_of(model.begin(), model.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.' || c == '/';
  });
}

std::string cache_folder(const std::string& model) {
  std::string folder = "models--";
  for (char c : model) {
    if (c == '/') {
      folder += "--";
    } else {
      folder += c;
    }
  }
  return folder;
}

std::string trimmed(std::string text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0)
    text.pop_back();
  return text;
}

/// The snapshot that refs/main names, else the only one; nothing when there is none.
std::optional<fs::path> find_snapshot(const fs::path& repository, const std::string& model) {
  std::error_code code;
  const fs::path snapshots = repository / "snapshots";
  const fs::path ref = repository / "refs" / "main";
  if (fs::is_regular_file(ref, code)) {
    const std::string hash = trimmed(read_text_file(ref, kMaxRefBytes));
    const bool plain = !hash.empty() && std::all_of(hash.begin(), hash.end(), [](unsigned char c) {
      return std::isalnum(c) != 0;
    });
    if (plain && fs::is_directory(snapshots / hash, code)) return snapshots / hash;
  }
  std::vector<std::string> found;
  for (fs::directory_iterator it(snapshots, code), end; !code && it != end; it.increment(code)) {
    std::error_code ignored;
    if (it->is_directory(ignored)) found.push_back(it->path().filename().string());
  }
  if (found.size() == 1) return snapshots / found.front();
  if (found.empty()) return std::nullopt;
  std::sort(found.begin(), found.end());
  throw CheckpointError(fmt::format(
      "{} has several snapshots of {} ({}) and no refs/main that names one; give the directory "
      "of the one to use as --model",
      snapshots.string(), in_quotes(model), fmt::join(found, ", ")));
}

}  // namespace

fs::path resolve_model(const std::string& model) {
  std::error_code code;
  if (fs::is_directory(model, code)) return model;
  if (fs::exists(model, code)) {
    throw CheckpointError(fmt::format(
        "{} is a file; --model takes the directory that holds config.json", in_quotes(model)));
  }
  if (!is_hub_name(model)) {
    throw CheckpointError(
        fmt::format("there is no directory {}; --model takes a directory or a name such as "
                    "bigscience/bloom",
                    in_quotes(model)));
  }
  const std::optional<fs::path> cache = hub_cache();
  if (!cache) {
    throw CheckpointError(fmt::format(
        "there is no directory {}, and no Hugging Face cache to look into: set HOME, HF_HOME or "
        "HF_HUB_CACHE",
        in_quotes(model)));
  }
  const fs::path repository = *cache / cache_folder(model);
  if (const auto snapshot = find_snapshot(repository, model)) return *snapshot;
  throw CheckpointError(fmt::format(
      "model {} was found neither as the directory {} nor in the Hugging Face cache as {}; "
      "download it "
      "with `hf download {}` (older: `huggingface-cli download {}`), or give its directory",
      in_quotes(model), fs::absolute(model, code).string(), repository.string(), model, model));
}

}  // namespace zi
