#pragma once

#include <CLI/CLI.hpp>
#include <exception>
#include <string>

#include "command_of.h"
#include "zero_infer/log.h"
#include "zero_infer/world.h"

namespace zi {

/// The main function of a benchmark that runs under mpirun as well: run(World&, Options) with what
/// the command line says, by add_options(app, options) and the RunOptions that Options are.
template <typename Options, typename AddOptions>
int benchmark_main(int argc, char** argv, const std::string& name, const std::string& about,
                   const AddOptions& add_options) {
  World world(&argc, &argv);
  try {
    Options o;
    o.command = command_of(world, name, argc, argv);
    CLI::App app(about);
    add_options(app, o);
    o.add_to(app);
    CLI11_PARSE(app, argc, argv);
    return run(world, o);
  } catch (const std::exception& error) {
    log_error(error.what());
    world.abort(1);
  }
}

}  // namespace zi
