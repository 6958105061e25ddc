#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace zi {

/// Reads typed keys of one JSON object; a CheckpointError names file, key and value. A key that is
/// missing and one that is null both mean the default.
class ConfigKeys {
 public:
  using Names = std::initializer_list<const char*>;

  /// Parses a whole file; `file` is for messages.
  ConfigKeys(std::string_view text, std::string file);

  /// Whether the key is there with a value that is not null.
  bool has(const char* key) const { return find({key}) != nullptr; }
  /// Whether the key is there and null.
  bool is_null(const char* key) const;

  std::string text(const char* key) const;
  std::optional<std::string> optional_text(const char* key) const;

  /// A size from 1 to `most` under one of the names.
  std::int64_t size(Names names, std::int64_t most) const;
  std::optional<std::int64_t> optional_size(Names names, std::int64_t most) const;
  /// A whole number from 0 to `most`.
  std::optional<std::int64_t> optional_count(const char* key, std::int64_t most) const;

  /// A finite number above 0, also as float32.
  double positive(const char* key, double absent) const;
  std::optional<double> optional_positive(const char* key) const;

  bool flag(const char* key, bool absent) const;

  /// Token ids: a number, a list of numbers, or null. Negative ids mean none.
  std::vector<std::int32_t> ids(const char* key) const;
  std::int32_t id(const char* key) const;

  /// The object under a key; messages name the keys in it `key.name`.
  std::optional<ConfigKeys> object(const std::string& key) const;
  /// The texts of a list; none where the key is absent.
  std::vector<std::string> texts(const char* key) const;

  /// Throws where the key is there with a value other than null or the one that changes nothing;
  /// where that is null or 0, also false, 0 and an empty list or object are nothing.
  void refuse(const char* key, const char* what, const nlohmann::json& neutral = nullptr) const;
  /// Throws: the value of the key is not `expected`.
  [[noreturn]] void fail(const std::string& key, const std::string& expected) const;

  /// Throws for a key that is not one of `names`, with the nearest one.
  void allow_only(Names names) const;

  const std::string& file() const { return file_; }
  /// The key as messages name it, in quotes: names in files may hold anything.
  std::string name(const std::string& key) const { return prefix_ + key; }
  const nlohmann::json& root() const { return root_; }

 private:
  ConfigKeys(nlohmann::json root, std::string file, std::string prefix);

  const nlohmann::json* find(Names names) const;
  std::string join(Names names) const;
  [[noreturn]] void fail_missing(Names names) const;
  [[noreturn]] void fail(const std::string& key, const nlohmann::json& value,
                         const std::string& expected) const;

  std::string file_;
  std::string prefix_;
  nlohmann::json root_;
};

}  // namespace zi
