#include "serve/http/http_options.h"

#include <algorithm>
#include <thread>

namespace zi {

int usual_handler_threads() {
  constexpr int kFewest = 4;
  constexpr int kMost = 16;
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 2, kFewest, kMost);
}

}  // namespace zi
