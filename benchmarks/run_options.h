#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "zero_infer/run_config.h"

namespace zi {

/// Options that benchmarks of passes and of their parts have in common.
struct RunOptions {
  std::string backend = "auto";
  int repeats = 10;
  std::string commit = "unknown";
  std::string machine = "unknown";
  std::string command;  // as the result tells it

  BackendChoice choice() const {
    return backend == "cuda"  ? BackendChoice::kCuda
           : backend == "cpu" ? BackendChoice::kCpu
                              : BackendChoice::kAuto;
  }
  void add_to(CLI::App& app) {
    app.add_option("--backend", backend, "what computes")
        ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
    app.add_option("--repeats", repeats, "timed runs")->check(CLI::PositiveNumber);
    app.add_option("--commit", commit, "stands in the result");
    app.add_option("--machine", machine, "stands in the result");
  }
};

}  // namespace zi
