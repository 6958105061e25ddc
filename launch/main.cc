#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/system_error.h"
#include "engine/engine.h"
#include "launch/signals.h"
#include "measure/benchmark_protocol.h"
#include "measure/limits_command.h"
#include "measure/result_path.h"
#include "measure/summary.h"
#include "measure/trace.h"
#include "plan/plan_command.h"
#include "plan/planned_machine.h"
#include "text/finished_prompts.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"
#include "zero_infer/world.h"

namespace zi {
namespace {

// Exit codes; a signal ends with 128 + its number.
constexpr int kFailed = 1;         // in mid-run: the job was taken down
constexpr int kBadInput = 2;       // nothing ran
constexpr int kPromptsFailed = 3;  // all others ran

void print(const std::string& text) {
  if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    throw IoError(fmt::format("standard output cannot be written: {}", system_message(errno)));
  }
}

const char* name_of_signal(int signal) { return signal == SIGINT ? "SIGINT" : "SIGTERM"; }

/// Prompts and outputs live on rank 0 alone.
struct Ends {
  std::unique_ptr<PromptSource> source;
  std::unique_ptr<OutputSink> sink;
  std::int64_t bad_lines = 0;
};

std::unique_ptr<PromptSource> open_source(const RunConfig& config, std::int64_t& bad_lines) {
  std::unique_ptr<PromptSource> source;
  if (config.prompts) {
    source = prompts_from_jsonl(*config.prompts, [&bad_lines](const std::string& message) {
      log_error(message);
      ++bad_lines;
    });
  } else {
    source = prompts_from_flags(config.prompt);
  }
  if (!config.resume) return source;
  FinishedPrompts done = finished_prompts(*config.output);
  log_info(fmt::format("{} finished sequences stand in {}: they are skipped", done.size(),
                       *config.output));
  return skip_done(std::move(source), std::move(done));
}

std::unique_ptr<OutputSink> open_sink(const RunConfig& config, const PromptSource& source) {
  if (config.output) {
    const bool progress = !config.quiet && *config.output != "-";
    return std::make_unique<JsonlSink>(*config.output, config.resume, source.total(), progress);
  }
  return std::make_unique<ConsoleSink>(reaches_terminal(STDOUT_FILENO));
}

std::string prompt_count(std::int64_t count) {
  return fmt::format("{} prompt{}", count, count == 1 ? "" : "s");
}

/// What was wrong with prompts, on rank 0.
void report_failures(const Engine& engine, const Engine::Outcome& outcome, std::int64_t bad_lines) {
  const std::int64_t failed = outcome.failed.all() + bad_lines;
  if (outcome.failed.not_finite > 0) {
    log_warning(fmt::format("the model gave NaN or infinity for {}: {}",
                            prompt_count(outcome.failed.not_finite),
                            advice_for_not_finite(engine.plan().compute_dtype)));
  }
  if (failed == 0 && outcome.stats.passes == 0) {
    log_warning(engine.config().resume ? "no prompt was left to run"
                                       : "there was no prompt to run");
  }
  if (failed > 0) {
    log_error(fmt::format("{} failed (named above); all others ran", prompt_count(failed)));
  }
}

int generate(World& world, Engine& engine, Ends& ends, Trace* trace) {
  const RunConfig& config = engine.config();
  Engine::Job job{.source = ends.source.get(),
                  .sink = ends.sink.get(),
                  .lanes = config.batch_size.front(),
                  .options = engine.generation_options(),
                  .stop_signal = stop_signal};
  if (trace != nullptr) job.on_pass = [trace](const PassTimes& times) { trace->add(times); };
  const char streams = world.rank() == 0 && ends.sink->streams() ? 1 : 0;
  job.options.stream_text = world.broadcast(std::string(1, streams), 0).front() != 0;
  const Engine::Outcome outcome = engine.generate(job);
  ends.sink.reset();  // its progress line ends before the summary
  if (outcome.signal != 0) {
    if (world.rank() == 0) {
      log_error(fmt::format("stopped by {}; finished sequences are kept{}",
                            name_of_signal(outcome.signal),
                            config.output && *config.output != "-" ? ", go on with --resume" : ""));
    }
    return 128 + outcome.signal;
  }
  if (!config.quiet && outcome.stats.passes > 0) {
    const std::string summary = summarize(world, engine, outcome);
    if (world.rank() == 0) log_info(summary);
  }
  // Lines that are no prompts are known to rank 0 only; every rank leaves with the same code.
  std::vector<std::int64_t> bad_lines(static_cast<std::size_t>(world.size()));
  world.all_gather(&ends.bad_lines, bad_lines.data(), sizeof(std::int64_t));
  if (world.rank() == 0) report_failures(engine, outcome, bad_lines.front());
  return outcome.failed.all() + bad_lines.front() > 0 ? kPromptsFailed : 0;
}

int generate_all(World& world, const RunConfig& config, Ends& ends, Trace* trace) {
  Engine engine(world, make_backend(world, config), config);
  world.all_or_none([&] {
    if (world.rank() == 0) ends.sink = open_sink(config, *ends.source);
  });
  catch_stop_signals();  // before, there is nothing to be kept: a signal ends the process
  return generate(world, engine, ends, trace);
}

int benchmark(World& world, const RunConfig& config, Trace* trace, const std::string& command,
              std::chrono::steady_clock::time_point start) {
  const int signal = run_benchmark(world, config,
                                   {.start = start,
                                    .command = command,
                                    .on_ready = catch_stop_signals,
                                    .stop_signal = stop_signal,
                                    .trace = trace});
  if (signal != 0 && world.rank() == 0) {
    log_error(fmt::format("stopped by {}; the cells before stand", name_of_signal(signal)));
  }
  return signal != 0 ? 128 + signal : 0;
}

/// As it was called, for results: `zero-infer --model m --benchmark`.
std::string command_text(const World& world, int argc, char** argv) {
  std::string text = world.size() > 1 ? fmt::format("mpirun -np {} zero-infer", world.size())
                                      : std::string("zero-infer");
  for (int i = 1; i < argc; ++i) text += fmt::format(" {}", argv[i]);
  return text;
}

/// `zero-infer plan`: without MPI, so that it also runs where no job can. Under mpirun one process
/// says it for all.
int plan(int argc, char** argv) {
  if (!speaks_for_job()) return 0;
  const CommandLine command = parse_command_line(argc, argv);
  print(command.exit_now ? command.text : plan_text(command.config, command.plan));
  return 0;
}

int run(World& world, int argc, char** argv, std::chrono::steady_clock::time_point start) {
  CommandLine command;
  world.all_or_none([&] { command = parse_command_line(argc, argv); });
  const RunConfig& config = command.config;
  const std::string prefix =
      world.size() > 1 ? fmt::format("[rank {}/{} {}]", world.rank(), world.size(), world.host())
                       : "";
  set_log(config.quiet || command.limits.quiet ? LogLevel::kQuiet
          : config.verbose                     ? LogLevel::kVerbose
                                               : LogLevel::kNormal,
          prefix);
  if (command.exit_now) {
    if (world.rank() == 0) print(command.text);
    return 0;
  }
  if (command.command == Command::kLimits) return run_limits_command(world, command.limits);
  Ends ends;
  world.all_or_none([&] {
    if (world.rank() != 0) return;
    // What cannot be written ends the job here; what stands there stays until there is something
    // to write.
    if (config.output && *config.output != "-") check_can_be_written("--output", *config.output);
    if (config.trace) check_can_be_written("--trace", *config.trace);
    if (!config.benchmark) ends.source = open_source(config, ends.bad_lines);
  });
  Trace trace;
  const int code = config.benchmark
                       ? benchmark(world, config, config.trace ? &trace : nullptr,
                                   command_text(world, argc, argv), start)
                       : generate_all(world, config, ends, config.trace ? &trace : nullptr);
  if (config.trace) trace.write(world, *config.trace);
  return code;
}

}  // namespace
}  // namespace zi

int main(int argc, char** argv) {
  const auto start = std::chrono::steady_clock::now();
  std::unique_ptr<zi::World> world;
  try {
    if (argc > 1 && std::string_view(argv[1]) == "plan") return zi::plan(argc, argv);
    world = std::make_unique<zi::World>(&argc, &argv);
    return zi::run(*world, argc, argv, start);
  } catch (const zi::PeerError&) {
    return zi::kBadInput;
  } catch (const std::exception& error) {
    zi::log_error(error.what());
    if (world == nullptr || world->leaving_together()) return zi::kBadInput;
    // The others do not know: they may be waiting for this rank in any collective.
    if (world->size() > 1) world->abort(zi::kFailed);
    return zi::kFailed;
  }
}
