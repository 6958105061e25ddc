#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "zero_infer/error.h"
#include "zero_infer/run_config.h"

namespace zi {

/// What `call` says when it refuses; the message must be one line.
template <typename Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::Not(testing::HasSubstr("\n")));
    return error.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

inline CommandLine parse(std::vector<std::string> arguments) {
  std::vector<const char*> argv = {"zero-infer"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  return parse_command_line(static_cast<int>(argv.size()), argv.data());
}

}  // namespace zi
