#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "chat/values/value.h"

namespace zi::chat {

/// What a checkpoint says of chat templates.
struct ChatFiles {
  struct Source {
    std::string name;  // of the file, and of the template in it where it has several
    std::string text;
  };
  std::map<std::string, Source> templates;  // `default`, `tool_use`; empty where there is none
  std::vector<std::string> unused;          // names of templates that are never chosen
  bool names_bos = false;  // a file says what `bos_token` is, or that there is none
  Dict tokens;             // `bos_token` .. as transformers passes them
};

/// Reads chat_template.jinja, additional_chat_templates/, tokenizer_config.json and
/// special_tokens_map.json of a checkpoint, where they are. Throws CheckpointError and IoError.
ChatFiles read_chat_files(const std::filesystem::path& directory);

}  // namespace zi::chat
