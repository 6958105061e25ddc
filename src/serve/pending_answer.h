#pragma once

#include <cstddef>

#include "serve/api_error.h"
#include "text/result.h"

namespace zi {

/// The answer to a request whose prompts are run. It is told what becomes of them on one thread, in
/// the order in which it happens, and of nothing more once it has failed. `number` counts the
/// prompts of the request.
class PendingAnswer {
 public:
  virtual ~PendingAnswer() = default;
  /// The queue has taken its prompts. Told once by who put them there, on a thread of its own,
  /// maybe at the same time as the others.
  virtual void accepted() {}
  /// It has a lane, and is told as it comes.
  virtual void started(std::size_t /*number*/) {}
  virtual void told(std::size_t /*number*/, const Delta& /*delta*/) {}
  virtual void finished(std::size_t number, Result result) = 0;
  /// One of the prompts, or the server: nothing else comes.
  virtual void failed(const ApiError& error) = 0;
};

}  // namespace zi
