#include <fmt/format.h>
#include <fmt/ranges.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_descriptor.h"
#include "base/standard_output.h"
#include "chat/chat_template.h"
#include "convert/pack_command.h"
#include "engine/engine.h"
#include "launch/job_files.h"
#include "launch/launcher.h"
#include "launch/same_program.h"
#include "launch/signals.h"
#include "launch/standard_descriptors.h"
#include "measure/benchmark_protocol.h"
#include "measure/limits_command.h"
#include "measure/run_limits.h"
#include "measure/summary.h"
#include "measure/trace.h"
#include "plan/plan_command.h"
#include "plan/planned_machine.h"
#include "serve/serve_job.h"
#include "serve/server.h"
#include "serve/terminal_chat.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"
#include "zero_infer/host_watch.h"
#include "zero_infer/log.h"
#include "zero_infer/world.h"

namespace zi {
namespace {

// Exit codes; a signal ends with 128 + its number.
constexpr int kFailed = 1;         // while running: the job was ended
constexpr int kBadInput = 2;       // nothing ran
constexpr int kPromptsFailed = 3;  // all others ran

/// "SIGTERM".
std::string name_of_signal(int signal) { return fmt::format("SIG{}", ::sigabbrev_np(signal)); }

std::unique_ptr<OutputSink> make_sink(const RunConfig& config, JobFiles& files) {
  if (!files.results) return std::make_unique<ConsoleSink>(reaches_terminal(STDOUT_FILENO));
  files.results->keep();
  const bool progress = !config.quiet && *config.output != "-";
  return std::make_unique<JsonlSink>(std::move(*files.results), files.source->total(), progress);
}

std::string prompt_count(std::int64_t count) {
  return fmt::format("{} prompt{}", count, count == 1 ? "" : "s");
}

/// What was wrong with prompts, on rank 0. `finished`: sequences of this job.
void report_failures(const RunConfig& config, std::int64_t failed, std::int64_t finished) {
  const std::string unwritten = finished == 0 && config.output && *config.output != "-"
                                    ? "; nothing was written to " + *config.output
                                    : "";
  if (failed > 0) {
    log_error(fmt::format("{} failed (named above); {}{}", prompt_count(failed),
                          finished > 0    ? "all others ran"
                          : config.resume ? "no others were left to run"
                                          : "there were no others",
                          unwritten));
  } else if (finished == 0) {
    log_warning((config.resume ? "no prompt was left to run" : "there was no prompt to run") +
                unwritten);
  }
}

/// Thrown on every rank before a model is loaded for which no prompt is left.
struct NothingToRun {
  std::int64_t bad_lines;
};

/// On every rank, before the model is loaded: what can be known of results and prompts by now.
/// `model`: its name, for the lines of results.
void check_before_load(World& world, const Engine& engine, JobFiles& files, std::string& model) {
  constexpr std::size_t kMostTried = 64;
  const RunConfig& config = engine.config();
  struct Left {
    bool any;
    std::int64_t bad_lines;
  };
  Left left{true, 0};
  world.all_or_none([&] {
    if (config.output) model = engine.model_name();
    if (world.rank() != 0) return;
    if (config.output) files.check_model(model, *config.output);
    const Admission admission = engine.admission(engine.generation_options());
    files.check_first_prompts(kMostTried, [&](Prompt& prompt) {
      const std::unique_ptr<Sequence> sequence = admission.admit(prompt);
      if (prompt.text) prompt.text_ids = sequence->tokens;
    });
    left = {!files.source->exhausted(), files.bad_lines};
  });
  left = world.all_gather(left).front();
  if (!left.any) throw NothingToRun{left.bad_lines};
}

int generate(World& world, Engine& engine, JobFiles& files, const std::string& model,
             Trace* trace) {
  const RunConfig& config = engine.config();
  std::unique_ptr<OutputSink> sink;
  world.all_or_none([&] {
    if (world.rank() == 0) sink = make_sink(config, files);
  });
  catch_stop_signals();  // before this there is nothing to keep: a signal ends the process
  Engine::Job job{.source = files.source.get(),
                  .sink = sink.get(),
                  .lanes = config.batch_size.front(),
                  .options = engine.generation_options(),
                  .encode_ahead = true,
                  .stop_signal = stop_signal};
  if (trace != nullptr) job.on_pass = [trace](const PassTimes& times) { trace->add(times); };
  job.options.model = model;
  const char streams = world.rank() == 0 && sink->streams() ? 1 : 0;
  job.options.stream_text = world.broadcast(std::string(1, streams), 0).front() != 0;
  const Engine::Outcome outcome = engine.generate(job);
  sink.reset();  // its progress line ends before the summary
  if (outcome.signal != 0) {
    if (world.rank() == 0) {
      log_error(fmt::format(
          "stopped by {}; finished sequences are kept{}", name_of_signal(outcome.signal),
          config.output && *config.output != "-" ? ", continue with --resume" : ""));
    }
    return 128 + outcome.signal;
  }
  if (!config.quiet && outcome.stats.passes > 0) {
    const std::string summary = summarize(world, engine, outcome);
    if (world.rank() == 0) log_info(summary);
  }
  // Only rank 0 knows of lines that are not prompts; every rank leaves with the same code.
  struct Mine {
    std::int64_t bad_lines;
    std::int64_t finished;
  };
  const std::vector<Mine> all = world.all_gather(Mine{files.bad_lines, outcome.stats.sequences});
  const std::int64_t bad_lines = all.front().bad_lines;
  std::int64_t finished = 0;
  for (const Mine& rank : all) finished += rank.finished;
  const std::int64_t failed = outcome.failed.all() + bad_lines;
  if (world.rank() == 0) {
    if (outcome.failed.not_finite > 0) {
      log_warning(fmt::format("the model gave NaN or infinity for {}: {}",
                              prompt_count(outcome.failed.not_finite),
                              advice_for_not_finite(engine.plan().compute_dtype)));
    }
    report_failures(config, failed, finished);
  }
  return failed > 0 ? kPromptsFailed : 0;
}

int generate_all(World& world, const RunConfig& config, JobFiles& files, Trace* trace) {
  // The results are in a file then: a job does not end for its log. Where they are printed, it does
  // not go on when nobody reads them.
  if (config.output && *config.output != "-") ignore_closed_pipes();
  std::string model;
  try {
    Engine engine(world, std::make_shared<Backend>(make_backend(world, config)), config, {},
                  [&](const Engine& opened) { check_before_load(world, opened, files, model); });
    return generate(world, engine, files, model, trace);
  } catch (const NothingToRun& nothing) {
    if (world.rank() == 0) {
      if (files.results) files.results->keep();
      report_failures(config, nothing.bad_lines, 0);
    }
    return nothing.bad_lines > 0 ? kPromptsFailed : 0;
  }
}

/// That running requests have after a signal: a launcher that kills the ranks must not be sooner.
std::chrono::milliseconds drain_time(int signal, const ServeOptions& options) {
  constexpr std::chrono::milliseconds kMargin(500);  // for clients to get an error instead
  const std::chrono::milliseconds wanted = std::chrono::seconds(options.drain_seconds);
  const auto patience = launcher_patience();
  if (!patience || signal == SIGUSR1) return wanted;
  return std::min(wanted, std::max(*patience - kMargin, std::chrono::milliseconds(0)));
}

int serve(World& world, const HostWatch& watch, const CommandLine& command) {
  ignore_closed_pipes();           // the log may go to a program that ends before the server
  std::unique_ptr<Server> server;  // before the model is loaded: it says how far that is
  world.all_or_none([&] {
    if (world.rank() == 0) server = std::make_unique<Server>(command);
  });
  if (server != nullptr && !command.unused_keys.empty()) {
    log_info(fmt::format("{}: {} mean nothing to a server", *command.config_file,
                         fmt::join(command.unused_keys, ", ")));
  }
  Engine engine(world, std::make_shared<Backend>(make_backend(world, command.config)),
                command.config, server != nullptr ? server->load_observer() : LoadObserver());
  const RunLimits limits = measure_travel_limits(engine);
  engine.begin_passes();
  count_stop_signals();  // before this there is no request to answer: a signal ends the process
  if (server != nullptr && launcher_patience()) {
    log_info("mpirun kills its ranks soon after SIGTERM; after SIGUSR1 running requests end first");
  }
  return serve_requests(
      world, watch, engine, server.get(), limits,
      {.count = stop_signal_count, .last = stop_signal, .drain = [&command](int signal) {
         return drain_time(signal, command.serve);
       }});
}

/// `zero-infer chat`: one conversation, on one lane.
int chat(World& world, const CommandLine& command) {
  RunConfig config = command.config;
  config.batch_size = {1};
  const bool first = world.rank() == 0;
  auto templates = std::make_shared<const CheckpointChat>(resolve_model(config.model));
  world.all_or_none([&] {
    if (first) templates->load();  // before the weights: without one there is no chat
  });
  Engine engine(world, make_backend(world, config), config);
  TerminalChat::Options options{.terminal = reaches_terminal(STDOUT_FILENO),
                                .quiet = config.quiet,
                                .system = command.chat.system,
                                .own = {}};
  if (!command.given.contains("max-new-tokens")) options.own.max_new_tokens = kAsManyAsFit;
  remember_stop_signals();
  std::unique_ptr<TerminalChat> terminal;
  world.all_or_none([&] {
    if (!first) return;
    terminal = std::make_unique<TerminalChat>(std::move(templates), std::move(options),
                                              FileDescriptor(::dup(STDIN_FILENO)));
  });
  const Engine::Outcome outcome =
      engine.generate({.source = terminal.get(),
                       .sink = terminal.get(),
                       .options = engine.generation_options(),
                       .stop_signal = [&] {
                         const int signal = take_stop_signal();
                         // Every rank may get it; the first one knows what it is meant for.
                         if (signal == SIGINT && (!first || terminal->interrupt())) return 0;
                         return signal;
                       }});
  return outcome.signal == 0 ? 0 : 128 + outcome.signal;
}

int benchmark(World& world, const RunConfig& config, JobFiles& files, Trace* trace,
              const std::string& command, std::chrono::steady_clock::time_point start) {
  const int signal = run_benchmark(world, config,
                                   {.start = start,
                                    .command = command,
                                    .on_ready = catch_stop_signals,
                                    .stop_signal = stop_signal,
                                    .trace = trace,
                                    .output = files.benchmark ? &*files.benchmark : nullptr});
  if (signal != 0 && world.rank() == 0) {
    log_error(
        fmt::format("stopped by {}; the cells before it are complete", name_of_signal(signal)));
  }
  return signal != 0 ? 128 + signal : 0;
}

/// The command line, for results: `zero-infer --model m --benchmark`.
std::string command_text(const World& world, int argc, char** argv) {
  std::string text = world.size() > 1 ? fmt::format("mpirun -np {} zero-infer", world.size())
                                      : std::string("zero-infer");
  for (int i = 1; i < argc; ++i) text += fmt::format(" {}", argv[i]);
  return text;
}

/// `zero-infer plan`: without MPI, so that it also runs where no job can. Under mpirun one process
/// speaks for all.
int plan(int argc, char** argv) {
  if (!speaks_for_job()) return 0;
  const CommandLine command = parse_command_line(argc, argv);
  print(command.exit_now ? command.text : plan_text(command.config, command.plan));
  return 0;
}

/// `zero-infer pack`: without MPI, as a plan.
int pack(int argc, char** argv) {
  if (!speaks_for_job()) return 0;
  const CommandLine command = parse_command_line(argc, argv);
  if (command.exit_now) {
    print(command.text);
    return 0;
  }
  set_log(command.pack.quiet ? LogLevel::kQuiet : LogLevel::kNormal, "");
  catch_stop_signals();
  try {
    const int signal = pack_checkpoint(command.pack, stop_signal);
    if (signal == 0) return 0;
    log_error(fmt::format("stopped by {}; nothing was left behind", name_of_signal(signal)));
    return 128 + signal;
  } catch (const PackFailed& error) {
    log_error(error.what());
    return kFailed;
  }
}

int run(World& world, int argc, char** argv, const ClosedDescriptors& closed,
        std::chrono::steady_clock::time_point start) {
  check_same_program(world);
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
  const bool resumable = command.command == Command::kRun && config.output && *config.output != "-";
  const HostWatch watch(
      world, {.limit = std::chrono::seconds(config.host_timeout),
              .advice = resumable ? "; finished sequences are kept, continue with --resume" : ""});
  if (command.command == Command::kLimits) {
    world.all_or_none([&] {
      if (world.rank() == 0 && closed.output) {
        throw ConfigError("the limits are printed on standard output, which is closed; open it");
      }
    });
    return run_limits_command(world, command.limits);
  }
  if (command.command == Command::kServe) return serve(world, watch, command);
  if (command.command == Command::kChat) return chat(world, command);
  JobFiles files;
  world.all_or_none([&] {
    if (world.rank() == 0) files.open(command, closed);
  });
  Trace trace;
  Trace* const traced = config.trace ? &trace : nullptr;
  const int code = config.benchmark ? benchmark(world, config, files, traced,
                                                command_text(world, argc, argv), start)
                                    : generate_all(world, config, files, traced);
  if (traced == nullptr) return code;
  try {
    trace.write(world, files.trace ? &*files.trace : nullptr);
    return code;
  } catch (const PeerError&) {
  } catch (const Error& error) {
    log_error(error.what());
  }
  return kFailed;  // not kBadInput: the job has run
}

}  // namespace
}  // namespace zi

int main(int argc, char** argv) {
  const auto start = std::chrono::steady_clock::now();
  std::unique_ptr<zi::World> world;
  const zi::ClosedDescriptors closed = zi::fill_standard_descriptors();
  try {
    if (argc > 1 && std::string_view(argv[1]) == "plan") return zi::plan(argc, argv);
    if (argc > 1 && std::string_view(argv[1]) == "pack") return zi::pack(argc, argv);
    world = std::make_unique<zi::World>(&argc, &argv);
    return zi::run(*world, argc, argv, closed, start);
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
