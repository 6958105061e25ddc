#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace zi {

/// `; did you mean `batch_size`?` for a name close to one of `known`, else an empty text. One
/// letter in `letters` may be wrong; fewer for names of which there are only a few.
std::string suggestion(std::string_view name, const std::vector<std::string>& known,
                       std::size_t letters = 3);

}  // namespace zi
