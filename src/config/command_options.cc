#include "config/command_options.h"

#include <cstdint>
#include <filesystem>
#include <limits>
#include <regex>

#include "config/written_values.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

std::int64_t count_of(const std::string& text) {
  const auto value = parse_number<std::int64_t>(text, "a whole number");
  check_count(value, 1, kMostCount);
  return value;
}

const std::string& some(const std::string& text) {
  if (text.empty()) throw ConfigError("must not be empty");
  return text;
}

BackendChoice backend_of(const std::string& text) {
  if (text == "auto") return BackendChoice::kAuto;
  if (text == "cpu") return BackendChoice::kCpu;
  if (text == "cuda") return BackendChoice::kCuda;
  throw ConfigError(fmt::format("`{}` is not one of auto|cpu|cuda", text));
}

WeightChoice weight_choice_of(const std::string& text) {
  if (text == "stored") return WeightChoice::kStored;
  if (text == "int8") return WeightChoice::kInt8;
  if (text == "int4") return WeightChoice::kInt4;
  throw ConfigError(fmt::format("`{}` is not one of stored|int8|int4", text));
}

WeightChoice head_choice_of(const std::string& text) {
  return text == "auto" ? WeightChoice::kAuto : weight_choice_of(text);
}

using Read = std::function<void(CommandLine&, const std::string&)>;

CommandOption valued(std::string flag, std::string value_name, std::string help, Read read) {
  return {std::move(flag), false, std::move(value_name), std::move(help), std::move(read)};
}

CommandOption toggle(std::string flag, std::string help,
                     std::function<bool&(CommandLine&)> member) {
  return {
      std::move(flag), true, "", std::move(help),
      [member](CommandLine& line, const std::string& text) { member(line) = parse_switch(text); }};
}

std::uint16_t port_of(const std::string& text) {
  const auto value = parse_number<std::int64_t>(text, "a whole number");
  check_count(value, 0, std::numeric_limits<std::uint16_t>::max());
  return static_cast<std::uint16_t>(value);
}

std::int64_t seconds_of(const std::string& text) {
  const auto value = parse_number<std::int64_t>(text, "a whole number");
  check_count(value, 0, kMostCount);
  return value;
}

/// An HTTP header must not be cut in two by what it holds.
const std::string& header_value(const std::string& text) {
  for (const char c : some(text)) {
    if (c < 0x21 || c > 0x7e) throw ConfigError("must be printable ASCII without spaces");
  }
  return text;
}

/// `*`, or an origin as browsers write it, with which it is compared byte by byte.
const std::string& origin_of(const std::string& text) {
  if (text == "*") return text;
  static const std::regex origin(
      R"([a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?)");
  if (!std::regex_match(text, origin)) {
    throw ConfigError(
        fmt::format("`{}` is neither `*` nor scheme://host[:port] in lower case, "
                    "without a path",
                    text));
  }
  return text;
}

std::size_t body_size_of(const std::string& text) {
  const std::size_t bytes = parse_size(text);
  if (bytes == 0) throw ConfigError("must not be 0: no request could say anything");
  return bytes;
}

std::vector<CommandOption> serve_options() {
  return {
      valued("host", "NAME", "listen at this address; 0.0.0.0: at all (default: 127.0.0.1)",
             [](CommandLine& l, const std::string& v) { l.serve.host = some(v); }),
      valued("port", "N", "and at this port; 0: at any that is free (default: 8000)",
             [](CommandLine& l, const std::string& v) { l.serve.port = port_of(v); }),
      valued("api-key", "KEY",
             "requests must bring this key, all but GET / and GET /health\n"
             "(default: $ZERO_INFER_API_KEY, which other users cannot see)",
             [](CommandLine& l, const std::string& v) { l.serve.api_key = header_value(v); }),
      valued("cors-origin", "URL|*",
             "pages from there (https://host[:port]) may use the server\n(default: none)",
             [](CommandLine& l, const std::string& v) { l.serve.cors_origin = origin_of(v); }),
      valued("tls-certificate", "FILE.pem", "serve HTTPS with this certificate and its chain",
             [](CommandLine& l, const std::string& v) { l.serve.tls_certificate = some(v); }),
      valued("tls-key", "FILE.pem", "and its private key",
             [](CommandLine& l, const std::string& v) { l.serve.tls_key = some(v); }),
      valued("served-model-name", "NAME", "the model's name in the API (default: that of --model)",
             [](CommandLine& l, const std::string& v) { l.serve.served_model_name = some(v); }),
      valued("max-queue", "N",
             "prompts that may wait for a lane; more are answered with 429\n(default: 2048)",
             [](CommandLine& l, const std::string& v) { l.serve.max_queue = count_of(v); }),
      valued("max-body", "SIZE",
             "of a request, up to 1GiB; more are answered with 413\n(default: 16MiB)",
             [](CommandLine& l, const std::string& v) { l.serve.max_body = body_size_of(v); }),
      valued("drain-seconds", "N",
             "that running requests have to end after the first SIGTERM,\nSIGINT or SIGHUP "
             "(default: 30)",
             [](CommandLine& l, const std::string& v) { l.serve.drain_seconds = seconds_of(v); }),
  };
}

std::vector<CommandOption> chat_options() {
  return {valued("system", "TEXT", "what a conversation begins with: the system message",
                 [](CommandLine& l, const std::string& v) { l.chat.system = some(v); })};
}

std::vector<CommandOption> plan_options() {
  return {
      valued("ranks", "N", "ranks of the job (default: those of mpirun, else 1)",
             [](CommandLine& l, const std::string& v) { l.plan.ranks = count_of(v); }),
      valued("ranks-per-host", "N", "ranks on each host (default: all on one)",
             [](CommandLine& l, const std::string& v) { l.plan.ranks_per_host = count_of(v); }),
      valued("gpus-like", "NAME",
             "plan for GPUs of this kind, one per rank, such as h100 or\nrtx4090, instead of this "
             "machine",
             [](CommandLine& l, const std::string& v) { l.plan.gpus_like = some(v); }),
      valued("host-memory", "SIZE", "free memory of a host (default: this one's)",
             [](CommandLine& l, const std::string& v) { l.plan.host_memory = parse_size(v); }),
      valued("limits", "FILE.json",
             "plan for the machine that zero-infer limits --output\nFILE.json measured",
             [](CommandLine& l, const std::string& v) { l.plan.limits = some(v); }),
      valued("tokens", "N",
             "length of a sequence in tokens, prompt and answer together,\nthat the times are for "
             "(default: 512)",
             [](CommandLine& l, const std::string& v) { l.plan.tokens = count_of(v); }),
      toggle("json", "print the plan as one JSON object",
             [](CommandLine& l) -> bool& { return l.plan.json; }),
  };
}

std::vector<CommandOption> limits_options() {
  return {
      valued("backend", "auto|cpu|cuda", "auto: the GPU where there is one (default: auto)",
             [](CommandLine& l, const std::string& v) { l.limits.backend = backend_of(v); }),
      valued("path", "DIR", "also measure io_uring reads and writes of a file here",
             [](CommandLine& l, const std::string& v) { l.limits.path = some(v); }),
      valued("output", "FILE.json|-", "write the result as one JSON object",
             [](CommandLine& l, const std::string& v) { l.limits.output = some(v); }),
      toggle("quiet", "show no progress, only the result",
             [](CommandLine& l) -> bool& { return l.limits.quiet; }),
  };
}

std::vector<CommandOption> pack_options() {
  return {
      valued("model", "DIR|NAME", "the checkpoint to pack, as for a run",
             [](CommandLine& l, const std::string& v) { l.pack.model = some(v); }),
      valued("output", "DIR", "a directory for the packed one: made, or empty",
             [](CommandLine& l, const std::string& v) { l.pack.output = some(v); }),
      valued(
          "weight-format", "stored|int8|int4", "of the blocks (default: stored)",
          [](CommandLine& l, const std::string& v) { l.pack.weight_format = weight_choice_of(v); }),
      valued("head-format", "auto|stored|int8|int4",
             "of head and embedding (default: auto: int8 with packed blocks)",
             [](CommandLine& l, const std::string& v) { l.pack.head_format = head_choice_of(v); }),
      toggle("quiet", "show no progress, only errors",
             [](CommandLine& l) -> bool& { return l.pack.quiet; }),
  };
}

}  // namespace

const std::vector<CommandOption>& options_of(Command command) {
  static const std::vector<CommandOption> serve = serve_options();
  static const std::vector<CommandOption> chat = chat_options();
  static const std::vector<CommandOption> plan = plan_options();
  static const std::vector<CommandOption> limits = limits_options();
  static const std::vector<CommandOption> pack = pack_options();
  static const std::vector<CommandOption> none;
  switch (command) {
    case Command::kServe:
      return serve;
    case Command::kPlan:
      return plan;
    case Command::kLimits:
      return limits;
    case Command::kPack:
      return pack;
    case Command::kChat:
      return chat;
    case Command::kRun:
      break;
  }
  return none;
}

}  // namespace zi
