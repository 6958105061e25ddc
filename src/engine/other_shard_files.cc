#include "engine/other_shard_files.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <string_view>
#include <system_error>

#include "zero_infer/bytes.h"
#include "zero_infer/weight_source.h"

namespace zi {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kDigits = 16;  // of an identity
constexpr std::size_t kMostLines = 4;

/// The identity in `name`, when all around it is the same as in `own`.
std::optional<std::uint64_t> identity_in(std::string_view name, std::string_view own,
                                         std::size_t at) {
  if (name.size() != own.size() || name.substr(0, at) != own.substr(0, at) ||
      name.substr(at + kDigits) != own.substr(at + kDigits)) {
    return std::nullopt;
  }
  std::uint64_t identity = 0;
  const char* const begin = name.data() + at;
  const auto [end, error] = std::from_chars(begin, begin + kDigits, identity, 16);
  if (error != std::errc() || end != begin + kDigits) return std::nullopt;
  return identity;
}

double bytes_in(const fs::path& folder) {
  double bytes = 0;
  std::error_code code;
  for (fs::directory_iterator it(folder, code), end; !code && it != end; it.increment(code)) {
    std::error_code gone;
    const std::uintmax_t size = it->file_size(gone);
    if (!gone) bytes += static_cast<double>(size);
  }
  return bytes;
}

}  // namespace

std::vector<std::string> other_shard_files(const fs::path& shard_file, std::uint64_t identity) {
  const fs::path folder = shard_file.parent_path();
  const std::string own = folder.filename().string();
  const std::size_t at = own.rfind(fmt::format("{:016x}", identity));
  std::vector<std::string> lines;
  if (at == std::string::npos) return lines;
  std::error_code code;
  fs::directory_iterator it(folder.parent_path(), code);
  for (const fs::directory_iterator end; !code && it != end; it.increment(code)) {
    const std::string name = it->path().filename().string();
    const auto other = identity_in(name, own, at);
    if (!other || *other == identity) continue;
    const std::string what =
        fmt::format("{} ({})", it->path().string(), format_memory(bytes_in(it->path())));
    if (same_content(*other, identity)) {
      // Why the files are written: it comes first.
      lines.insert(
          lines.begin(),
          fmt::format("shards are written anew: the times of the checkpoint's files are not those "
                      "at which {} was written. The files were copied, fetched or changed since: "
                      "samples of their content are the same, but a small change would not show. "
                      "Remove that folder if no other copy of the checkpoint needs it",
                      what));
    } else {
      lines.push_back(fmt::format(
          "{} holds shards of other weights of the same name, or of an older version "
          "of this program, which this job does not use: remove it if no other job does",
          what));
    }
  }
  if (lines.size() > kMostLines) {
    const std::size_t more = lines.size() - (kMostLines - 1);
    lines.resize(kMostLines - 1);
    lines.push_back(
        fmt::format("{} more such folders are in {}", more, folder.parent_path().string()));
  }
  return lines;
}

}  // namespace zi
