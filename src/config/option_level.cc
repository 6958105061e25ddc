#include <fmt/format.h>

#include <algorithm>

#include "base/printable_text.h"
#include "config/option_table.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

const Option& find_option(std::string_view flag) {
  const auto& table = option_table();
  return *std::find_if(table.begin(), table.end(),
                       [&](const Option& option) { return option.flag == flag; });
}

}  // namespace

void apply_level(RunConfig& config, const std::vector<Given>& level) {
  for (const Given& given : level) {
    if (!given.option->rival.empty()) find_option(given.option->rival).reset(config);
    given.option->reset(config);
  }
  for (const Given& given : level) {
    try {
      given.option->read(config, given.values);
      given.option->check(config);
    } catch (const ConfigError& error) {
      throw ConfigError(one_line(fmt::format("{}: {}", given.where, error.what())));
    }
  }
  for (const Given& given : level) {
    try {
      check_rival(config, *given.option);
    } catch (const ConfigError& error) {
      throw ConfigError(one_line(fmt::format("{}: {}", given.where, error.what())));
    }
  }
}

void check_rival(const RunConfig& config, const Option& option) {
  if (option.rival.empty() || !option.is_set(config)) return;
  const Option& rival = find_option(option.rival);
  if (!rival.is_set(config)) return;
  throw ConfigError(
      fmt::format("{} and {} exclude each other; give one of them", option.key(), rival.key()));
}

std::string suggestion(std::string_view name, const std::vector<std::string>& known) {
  // If a third of the name is wrong, it is still a slip; if more, it is another word.
  std::size_t best = std::max<std::size_t>(1, name.size() / 3) + 1;
  const std::string* nearest = nullptr;
  for (const std::string& candidate : known) {
    const std::size_t distance = edit_distance(name, candidate);
    if (distance < best) {
      best = distance;
      nearest = &candidate;
    }
  }
  return nearest == nullptr ? "" : fmt::format("; did you mean `{}`?", *nearest);
}

std::string one_line(std::string_view message) {
  constexpr std::size_t kMostBytes = 1000;
  std::string line(message.substr(0, kMostBytes));
  // Do not cut a UTF-8 character in two.
  if (message.size() > kMostBytes) {
    while (!line.empty() && (static_cast<unsigned char>(message[line.size()]) & 0xC0u) == 0x80u) {
      line.pop_back();
    }
    line += "...";
  }
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return printable(line);
}

}  // namespace zi
