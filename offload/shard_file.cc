#include "offload/shard_file.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <string_view>
#include <system_error>
#include <utility>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/weight_source.h"

namespace zi {
namespace {

constexpr std::size_t kMostNamesInText = 8;
constexpr std::size_t kIdentityDigits = 16;

/// The model's name as folders have it: nothing in it leads elsewhere, or acts on a terminal.
std::string name_in_folders(const std::string& model_name) {
  std::string name = model_name.substr(0, 100);
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '_' && c != '.')
      c = '_';
  }
  if (name.empty() || name.front() == '.') name.insert(0, "model");
  return name;
}

std::string folder_name(const ShardFileKey& key) {
  return fmt::format("{}-{:016x}-{}-world{}", name_in_folders(key.model_name), key.model_identity,
                     name_of(key.format), key.world);
}

/// Of a folder of that model: its name is one that folder_name makes.
std::uint64_t identity_in(std::string_view folder, const std::string& model_name) {
  const char* const begin = folder.data() + name_in_folders(model_name).size() + 1;
  std::uint64_t identity = 0;
  std::from_chars(begin, begin + kIdentityDigits, identity, 16);
  return identity;
}

/// Whether this is the name of a folder of that model, as folder_name makes it.
bool is_folder_of(std::string_view folder, const std::string& model_name) {
  const std::string start = name_in_folders(model_name) + "-";
  if (!folder.starts_with(start)) return false;
  folder.remove_prefix(start.size());
  const auto all = [](std::string_view text, std::string_view allowed) {
    return !text.empty() && text.find_first_not_of(allowed) == std::string_view::npos;
  };
  constexpr std::string_view kDigits = "0123456789";
  constexpr std::string_view kWorld = "-world";
  const std::size_t world = folder.rfind(kWorld);
  if (world == std::string_view::npos || world <= kIdentityDigits + 1) return false;
  return all(folder.substr(0, kIdentityDigits), "0123456789abcdef") &&
         folder[kIdentityDigits] == '-' &&
         all(folder.substr(kIdentityDigits + 1, world - kIdentityDigits - 1),
             "abcdefghijklmnopqrstuvwxyz0123456789") &&
         all(folder.substr(world + kWorld.size()), kDigits);
}

/// What the files of a folder take from the disk.
std::optional<std::uint64_t> bytes_on_disk(const std::filesystem::path& folder) {
  std::error_code error;
  std::uint64_t bytes = 0;
  for (std::filesystem::directory_iterator file(folder, error), end; !error && file != end;
       file.increment(error)) {
    struct stat info {};
    if (::lstat(file->path().c_str(), &info) == 0) {
      bytes += static_cast<std::uint64_t>(info.st_blocks) * 512;
    }
  }
  if (error) return std::nullopt;
  return bytes;
}

}  // namespace

std::filesystem::path shard_file_path(const std::filesystem::path& directory,
                                      const ShardFileKey& key) {
  return directory / folder_name(key) / fmt::format("rank-{}.shard", key.rank);
}

std::optional<OpenShardFile> OpenShardFile::find(const ShardFolder& folder,
                                                 const std::string& name) {
  std::optional<FileDescriptor> file = folder.open(name);
  if (!file) return std::nullopt;
  std::string path = folder.path_of(name);
  ShardHeader header = read_shard_header(file->get(), path);
  return OpenShardFile{std::move(*file), std::move(path), std::move(header)};
}

OpenShardFile OpenShardFile::open(const std::filesystem::path& path) {
  const std::optional<ShardFolder> folder =
      ShardFolder::find(path.has_parent_path() ? path.parent_path() : ".");
  std::optional<OpenShardFile> found;
  if (folder) found = find(*folder, path.filename().string());
  if (!found) {
    throw IoError(path.string() + ": the shard file is gone; the next start writes it again");
  }
  return std::move(*found);
}

void OpenShardFile::check_key(const ShardFileKey& key, std::size_t extent_bytes) const {
  const auto differs = [&](const std::string& what) {
    throw IoError(fmt::format("shard file {} was written for {}", path, what));
  };
  if (header.key.world != key.world) {
    differs(fmt::format("{} ranks, this job has {}; remove it or run with -np {}", header.key.world,
                        key.world, header.key.world));
  }
  if (header.key.rank != key.rank) {
    differs(fmt::format("rank {}, this is rank {}; remove it", header.key.rank, key.rank));
  }
  if (header.key.format != key.format) {
    differs(fmt::format("weights in {}, this job uses {}; remove it", name_of(header.key.format),
                        name_of(key.format)));
  }
  if (header.key.model_identity != key.model_identity) {
    differs(fmt::format(
        "other weights: model {} ({:016x}), this job runs {} ({:016x}); remove it or use "
        "another directory",
        name_in_folders(header.key.model_name), header.key.model_identity,
        name_in_folders(key.model_name), key.model_identity));
  }
  if (header.extent_bytes != extent_bytes) {
    differs(fmt::format("extents of {} bytes, this job reads {}; {}", header.extent_bytes,
                        extent_bytes, kWrittenAgain));
  }
}

bool OpenShardFile::holds(std::span<const ShardSize> shards) const {
  bool all = true;
  for (const ShardSize& wanted : shards) {
    const ShardUnit* there = header.find(wanted.unit);
    if (there == nullptr) {
      all = false;
    } else if (there->bytes != wanted.bytes) {
      throw IoError(fmt::format("shard file {} holds {} bytes of unit {}, this job needs {}; {}",
                                path, there->bytes, wanted.unit, wanted.bytes, kWrittenAgain));
    }
  }
  return all;
}

std::vector<OtherShards> other_shards(const std::filesystem::path& directory,
                                      const ShardFileKey& key) {
  std::vector<OtherShards> others;
  const std::string own = folder_name(key);
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name == own || !is_folder_of(name, key.model_name)) continue;
    std::error_code ignored;
    if (!std::filesystem::is_directory(entry->symlink_status(ignored))) continue;
    const std::uint64_t identity = identity_in(name, key.model_name);
    others.push_back(
        {name, bytes_on_disk(entry->path()),
         identity != key.model_identity && same_content(identity, key.model_identity)});
  }
  std::ranges::sort(others, std::ranges::greater(), &OtherShards::bytes);
  return others;
}

std::string other_shards_text(const std::filesystem::path& directory, const ShardFileKey& key) {
  const std::vector<OtherShards> others = other_shards(directory, key);
  if (others.empty()) return "";
  std::string text = fmt::format("{} also holds shard files of {} that this rank does not use: ",
                                 directory.string(), name_in_folders(key.model_name));
  for (std::size_t i = 0; i < std::min(others.size(), kMostNamesInText); ++i) {
    text += fmt::format(
        "{}{} ({}{})", i == 0 ? "" : ", ", others[i].folder,
        others[i].bytes ? format_bytes(static_cast<double>(*others[i].bytes)) : "cannot be read",
        others[i].other_times
            ? ": samples of the weights are the same, but the checkpoint's files had other times; "
              "they were copied, fetched again or changed, and a small change would not show"
            : "");
  }
  if (others.size() > kMostNamesInText) {
    text += fmt::format(" and {} more", others.size() - kMostNamesInText);
  }
  return text + "; remove the folders that no job needs any more";
}

}  // namespace zi
