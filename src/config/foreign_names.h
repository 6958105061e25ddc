#pragma once

#include <string>
#include <string_view>

namespace zi {

/// How a setting is written: `--max-new-tokens` or `max_new_tokens`.
enum class NameStyle { kFlag, kKey };

/// What to do here about a flag of vLLM, llama.cpp, DeepSpeed or transformers, as the end of a
/// message: `; zero-infer's flag for that is `--max-new-tokens``. `name` as it was given, with its
/// dashes or as a key. Empty for a name that is not known.
std::string foreign_name_advice(std::string_view name, NameStyle style);

}  // namespace zi
