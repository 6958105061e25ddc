#include <fmt/format.h>

#include <algorithm>

#include "base/printable_text.h"
#include "config/option_table.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

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
