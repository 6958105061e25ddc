#include "base/standard_output.h"

#include <cerrno>
#include <cstdio>

#include "base/system_error.h"
#include "zero_infer/error.h"

namespace zi {

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw IoError("cannot write to standard output: " + system_message(errno));
  }
}

}  // namespace zi
