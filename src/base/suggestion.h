#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace zi {

/// `; did you mean `batch_size`?` for a name close to one of `known`, else an empty text.
std::string suggestion(std::string_view name, const std::vector<std::string>& known);

}  // namespace zi
