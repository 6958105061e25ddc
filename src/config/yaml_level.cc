#include "config/yaml_level.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <system_error>

#include "base/suggestion.h"
#include "base/system_error.h"
#include "config/foreign_names.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

std::string read_file(const std::filesystem::path& path) {
  const auto fail = [&path](const std::string& reason) {
    return ConfigError(one_line(fmt::format("cannot read --config {}: {}", path.string(), reason)));
  };
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) throw fail("it is a directory");
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw fail(system_message(errno));
  std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) throw fail("the read failed");
  return content;
}

/// Turns the nodes of one YAML file into what `apply_level` takes.
class YamlLevel {
 public:
  explicit YamlLevel(const std::filesystem::path& path) : path_(path) {}

  std::vector<Given> parse() const {
    std::vector<YAML::Node> documents;
    try {
      documents = YAML::LoadAll(read_file(path_));
    } catch (const YAML::Exception& error) {
      throw at(error.mark, error.msg);
    }
    if (documents.empty() || (documents.size() == 1 && !documents[0].IsMap())) {
      throw ConfigError(one_line(fmt::format(
          "{}: not a YAML map; write lines such as `max_new_tokens: 64`", path_.string())));
    }
    if (documents.size() > 1) {
      throw at(documents[1].Mark(), "a second YAML document; keep all keys in the first");
    }
    std::vector<Given> level;
    std::map<std::string, int> lines;  // yaml-cpp keeps repeated keys: find them here
    for (const auto& entry : documents[0]) {
      const YAML::Mark mark = entry.first.Mark();
      if (!entry.first.IsScalar()) throw at(mark, "a key must be a name, not a list or a map");
      const std::string& key = entry.first.Scalar();
      const Option& option = find(key, mark);
      const auto [first, is_new] = lines.emplace(key, mark.line + 1);
      if (!is_new) {
        throw at(mark,
                 fmt::format("key `{}` is repeated; line {} has it already", key, first->second));
      }
      const YAML::Mark where = mark_of(entry.second, mark);
      level.push_back({&option, values(option, entry.second, where), place(where) + ": " + key});
    }
    return level;
  }

 private:
  /// A missing value has the mark of whatever comes next: take its parent's.
  static YAML::Mark mark_of(const YAML::Node& node, const YAML::Mark& parent) {
    return node.IsNull() || node.Mark().is_null() ? parent : node.Mark();
  }

  std::string place(const YAML::Mark& mark) const {
    return mark.is_null() ? path_.string() : fmt::format("{}:{}", path_.string(), mark.line + 1);
  }

  ConfigError at(const YAML::Mark& mark, const std::string& message) const {
    return ConfigError(one_line(place(mark) + ": " + message));
  }

  const Option& find(const std::string& key, const YAML::Mark& mark) const {
    std::vector<std::string> known;
    for (const Option& option : option_table()) {
      known.push_back(option.key());
      if (known.back() == key) return option;
    }
    const std::string advice = foreign_name_advice(key, NameStyle::kKey);
    throw at(mark, fmt::format("unknown key `{}`{}", key,
                               advice.empty() ? suggestion(key, known) : advice));
  }

  std::string scalar(const Option& option, const YAML::Node& node, const YAML::Mark& mark) const {
    const auto fail = [&](const char* what) { return at(mark, option.key() + ": " + what); };
    if (node.IsNull()) throw fail("has no value; give one or remove the line");
    if (node.IsMap()) throw fail("must be one value, not a map; a text with `: ` needs quotes");
    if (!node.IsScalar()) throw fail("must be one value, not a list");
    return option.input_path ? relocated(node.Scalar()) : node.Scalar();
  }

  Values values(const Option& option, const YAML::Node& node, const YAML::Mark& mark) const {
    const bool list = option.arity == Arity::kList || option.arity == Arity::kCommaList;
    if (!list || !node.IsSequence()) return {scalar(option, node, mark)};
    Values values;
    for (const YAML::Node& item : node) {
      values.push_back(scalar(option, item, mark_of(item, mark)));
    }
    return values;
  }

  std::string relocated(const std::string& text) const {
    const bool here =
        text == "." || text == ".." || text.starts_with("./") || text.starts_with("../");
    return here ? (path_.parent_path() / text).string() : text;
  }

  std::filesystem::path path_;
};

}  // namespace

std::vector<Given> read_yaml_level(const std::filesystem::path& path) {
  return YamlLevel(path).parse();
}

}  // namespace zi
