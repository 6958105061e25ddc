#pragma once

#include <cstddef>

namespace zi {

/// Lets the process have `more` open files beyond those it has: raises the soft limit, up to the
/// hard one, and says in the log where that is not enough.
void allow_open_files(std::size_t more);

}  // namespace zi
