#include "chat/chat_template.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <ctime>
#include <vector>

#include "base/printable_text.h"
#include "chat/chat_files.h"
#include "chat/jinja/interpreter.h"
#include "chat/jinja/parser.h"
#include "chat/values/budget.h"
#include "chat/values/json_text.h"
#include "chat/values/template_error.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {

using chat::Dict;
using chat::None;
using chat::Value;

namespace {

Value message_of(std::string_view role, Value content) {
  Dict message;
  message.set(Value::text("role"), Value::text(std::string(role)));
  message.set(Value::text("content"), std::move(content));
  return std::make_shared<const Dict>(std::move(message));
}

constexpr std::string_view kTrialTexts[] = {"zero-infer trial", "of parts"};
constexpr std::string_view kTrialCall = "a1b2c3d4e";  // Mistral's templates want nine letters

/// An answer that is a call of a tool.
Value trial_call() {
  Dict function;
  function.set(Value::text("name"), Value::text("a"));
  function.set(Value::text("arguments"), std::make_shared<const Dict>());
  Dict call;
  call.set(Value::text("id"), Value::text(std::string(kTrialCall)));
  call.set(Value::text("type"), Value::text("function"));
  call.set(Value::text("function"), std::make_shared<const Dict>(std::move(function)));
  Dict message = *message_of("assistant", Value::text("")).dict();
  message.set(Value::text("tool_calls"),
              Value::list({std::make_shared<const Dict>(std::move(call))}));
  return std::make_shared<const Dict>(std::move(message));
}

/// Conversations with one message of this role whose content is a list of the trial's texts. The
/// first one that a template does not refuse tells what it does with such lists.
std::vector<std::vector<Value>> trials_of_parts(std::string_view role) {
  const Value parts = message_of(
      role, Value::list({chat::text_part(kTrialTexts[0]), chat::text_part(kTrialTexts[1])}));
  const Value user = message_of("user", Value::text("a"));
  if (role == "user") return {{parts}};
  if (role == "system") return {{parts, user}};
  if (role == "assistant") return {{user, parts, user}};
  if (role == "developer") return {{parts, user}, {user, parts}};
  Dict result = *parts.dict();
  result.set(Value::text("tool_call_id"), Value::text(std::string(kTrialCall)));
  result.set(Value::text("name"), Value::text("a"));
  const Value answer = message_of("assistant", Value::text("a"));
  return {{user, trial_call(), std::make_shared<const Dict>(std::move(result))},
          {user, answer, parts},
          {user, parts}};
}

/// Whether the trial's texts came out as they are.
bool shows_parts(const std::string& prompt) {
  return std::ranges::all_of(kTrialTexts, [&](std::string_view text) {
    const std::size_t at = prompt.find(text);
    if (at == std::string::npos) return false;
    const bool quoted = at > 0 && (prompt[at - 1] == '\'' || prompt[at - 1] == '"');
    return !quoted;  // as a value in a list that was printed, or in its JSON
  });
}

}  // namespace

Value chat::text_part(std::string_view text) {
  Dict part;
  part.set(Value::text("type"), Value::text("text"));
  part.set(Value::text("text"), Value::text(std::string(text)));
  return std::make_shared<const Dict>(std::move(part));
}

ChatRequest ChatRequest::of_user(std::string_view text) {
  ChatRequest request;
  request.messages = Value::list({message_of("user", Value::text(std::string(text)))});
  return request;
}

ChatTemplate::ChatTemplate(std::string_view source, std::string name)
    : source_(source), name_(std::move(name)) {
  try {
    body_ = chat::parse_template(source);
  } catch (const chat::TemplateError& error) {
    throw CheckpointError(fmt::format("{}:{}: {}", name_, error.line(), error.what()));
  }
}

std::string ChatTemplate::render(const ChatRequest& request, const Dict& variables,
                                 std::time_t now) const {
  Dict all = variables;
  all.set(Value::text("messages"), request.messages);
  all.set(Value::text("tools"), request.tools);
  all.set(Value::text("documents"), None{});
  all.set(Value::text("add_generation_prompt"), true);
  for (const auto& [key, value] : request.arguments.items()) all.set(key, value);
  try {
    return chat::render(body_, all, now);
  } catch (const chat::RaisedByTemplate& raised) {
    throw PromptError(
        fmt::format("the chat template refuses these messages: {}", printable(raised.what())));
  } catch (const chat::TemplateError& error) {
    throw PromptError(
        fmt::format("the chat template fails ({}:{}): {}", name_, error.line(), error.what()));
  }
}

const CheckpointChat::Loaded& CheckpointChat::loaded() const {
  std::call_once(once_, [this] {
    try {
      const chat::ChatFiles files = chat::read_chat_files(directory_);
      auto made = std::make_unique<Loaded>();
      made->tokens = files.tokens;
      chat::Budget budget;
      const Value tokens = std::make_shared<const Dict>(files.tokens);
      made->identity = chat::to_json(tokens, {}, budget);
      for (const auto& [name, source] : files.templates) {
        made->templates.emplace(name, ChatTemplate(source.text, source.name));
        if (!files.names_bos && source.text.find("bos_token") != std::string::npos) {
          log_warning(fmt::format(
              "{} uses `bos_token`, which neither tokenizer_config.json nor "
              "special_tokens_map.json "
              "names: it is empty here, and may be the default of a tokenizer's class elsewhere",
              source.name));
        }
        made->identity += fmt::format("|{} {} ", name, source.text.size()) + source.text;
      }
      if (!made->templates.contains("default") && !files.unused.empty()) {
        throw CheckpointError(
            fmt::format("{} has chat templates, but none with the name `default` (there is {})",
                        directory_.string(), in_quotes(files.unused.front())));
      }
      if (made->templates.empty()) {
        throw CheckpointError(fmt::format(
            "{} has no chat template (chat_template.jinja, or `chat_template` in "
            "tokenizer_config.json), so it cannot answer `messages`; give its prompts as text",
            directory_.string()));
      }
      loaded_ = std::move(made);
    } catch (const Error& error) {
      failure_ = error.what();
    }
  });
  if (loaded_ == nullptr) throw CheckpointError(failure_);
  return *loaded_;
}

void CheckpointChat::load() const { loaded(); }

const ChatTemplate& CheckpointChat::chosen(const ChatRequest& request) const {
  const auto& templates = loaded().templates;
  const auto tools = templates.find("tool_use");
  if (!request.tools.is_none() && tools != templates.end()) return tools->second;
  const auto plain = templates.find("default");
  if (plain == templates.end()) {
    throw CheckpointError(fmt::format("{} has chat templates, but none with the name `default`",
                                      directory_.string()));
  }
  return plain->second;
}

std::string CheckpointChat::render(const ChatRequest& request) const {
  return chosen(request).render(request, loaded().tokens, std::time(nullptr));
}

bool CheckpointChat::takes_parts(const ChatRequest& request, std::string_view role) const {
  ChatRequest trial = request;
  for (std::vector<Value>& messages : trials_of_parts(role)) {
    trial.messages = Value::list(std::move(messages));
    try {
      return shows_parts(render(trial));
    } catch (const PromptError&) {
      // The template refuses the list, or messages in this order.
    }
  }
  return false;
}

std::string CheckpointChat::hash(const ChatRequest& request) const {
  chat::Budget budget;
  const Value arguments = std::make_shared<const Dict>(request.arguments);
  const Value all = Value::list({request.messages, request.tools, arguments});
  try {
    const std::string bytes = loaded().identity + chat::to_json(all, {}, budget);
    return fmt::format("{:016x}", XXH3_64bits(bytes.data(), bytes.size()));
  } catch (const chat::TemplateError& error) {
    throw PromptError(error.what());
  }
}

}  // namespace zi
