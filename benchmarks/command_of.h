#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>

#include "zero_infer/world.h"

namespace zi {

/// The command that ran `program`, for its result: without the flags whose values stand in the
/// result by themselves, and with DIR for absolute paths, which are this machine's.
inline std::string command_of(const World& world, std::string_view program, int argc, char** argv,
                              std::initializer_list<std::string_view> told = {"--commit",
                                                                              "--machine"}) {
  std::string command = world.size() > 1 ? fmt::format("mpirun -np {} ", world.size()) : "";
  command += program;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (std::ranges::find(told, flag) != told.end()) {
      ++i;
    } else {
      command += fmt::format(" {}", flag.starts_with('/') ? "DIR" : flag);
    }
  }
  return command;
}

}  // namespace zi
