#pragma once

#include <string>

#include "zero_infer/error.h"

namespace zi {

/// A request that gets an error for an answer; its connection closes behind it.
class RequestError : public Error {
 public:
  RequestError(int status, const std::string& message) : Error(message), status_(status) {}
  int status() const { return status_; }

 private:
  int status_;
};

}  // namespace zi
