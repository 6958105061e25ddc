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
  constexpr std::string_view kTexts[] = {"zero-infer trial", "of parts"};
  std::vector<Value> messages = {
      message_of(role, Value::list({chat::text_part(kTexts[0]), chat::text_part(kTexts[1])}))};
  const Value user = message_of("user", Value::text("a"));
  if (role == "assistant") messages.insert(messages.begin(), user);
  if (role == "assistant" || role == "system") {
    messages.push_back(user);
  } else if (role != "user") {
    return false;
  }
  ChatRequest trial = request;
  trial.messages = Value::list(std::move(messages));
  std::string prompt;
  try {
    prompt = render(trial);
  } catch (const PromptError&) {
    return false;
  }
  return std::ranges::all_of(kTexts, [&](std::string_view text) {
    const std::size_t at = prompt.find(text);
    if (at == std::string::npos) return false;
    const bool quoted = at > 0 && (prompt[at - 1] == '\'' || prompt[at - 1] == '"');
    return !quoted;  // as a value in a list that was printed, or in its JSON
  });
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
