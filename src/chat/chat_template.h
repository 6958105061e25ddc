#pragma once

#include <cstdint>
#include <ctime>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "chat/jinja/syntax.h"
#include "chat/values/value.h"

namespace zi {

/// What a chat template is given beside the model's special tokens.
struct ChatRequest {
  chat::Value messages = chat::None{};
  chat::Value tools = chat::None{};
  chat::Dict arguments;  // further variables by name, such as `enable_thinking`

  /// One message of the user.
  static ChatRequest of_user(std::string_view text);
};

namespace chat {
/// A part of a `content` that is a list: {"type": "text", "text": ..}.
Value text_part(std::string_view text);
}  // namespace chat

/// The Jinja template that turns messages into a prompt. Immutable: any thread may use it.
class ChatTemplate {
 public:
  /// `name` is for messages. Throws CheckpointError with name and line for a template that is not
  /// valid, or not supported.
  ChatTemplate(std::string_view source, std::string name);

  /// The prompt, with what begins the answer. `variables` are the special tokens. Throws
  /// PromptError where the template refuses the messages (raise_exception) or fails.
  std::string render(const ChatRequest& request, const chat::Dict& variables,
                     std::time_t now) const;
  const std::string& source() const { return source_; }

 private:
  std::string source_;
  std::string name_;
  chat::Body body_;
};

/// The chat templates of a checkpoint, found where transformers finds them: chat_template.jinja
/// (and additional_chat_templates/tool_use.jinja), else `chat_template` of tokenizer_config.json, a
/// text or a list of named ones. Read when first asked for; any thread may ask.
class CheckpointChat {
 public:
  explicit CheckpointChat(std::filesystem::path directory) : directory_(std::move(directory)) {}

  /// Reads the templates. Throws CheckpointError where there is none, or it cannot be used.
  void load() const;
  /// See ChatTemplate::render. Throws CheckpointError as `load` does.
  std::string render(const ChatRequest& request) const;
  /// Whether the template that answers this request takes a list of text parts as the `content` of
  /// a message of this role: the parts of a message for trial come out as plain text. Templates
  /// that were written for texts alone print a list as Python does, or nothing, or refuse it. A
  /// `tool` (and any role that is not named here) is tried behind a call of a tool, behind an
  /// answer and behind the user, a `developer` before the user and behind. Throws CheckpointError
  /// as `load` does.
  bool takes_parts(const ChatRequest& request, std::string_view role) const;
  /// 16 hexadecimal digits: equal for equal requests of equal templates.
  std::string hash(const ChatRequest& request) const;

 private:
  struct Loaded {
    std::map<std::string, ChatTemplate, std::less<>> templates;  // `default`, `tool_use`
    chat::Dict tokens;
    std::string identity;  // of all of it
  };
  const Loaded& loaded() const;
  const ChatTemplate& chosen(const ChatRequest& request) const;

  std::filesystem::path directory_;
  mutable std::once_flag once_;
  mutable std::unique_ptr<Loaded> loaded_;
  mutable std::string failure_;  // why there is none
};

}  // namespace zi
