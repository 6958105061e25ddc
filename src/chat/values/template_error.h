#pragma once

#include <string>

#include "zero_infer/error.h"

namespace zi::chat {

/// A template that cannot be read or rendered. `line` is its line, from 1, or 0 where the thrower
/// does not know it: the interpreter then fills it in.
class TemplateError : public Error {
 public:
  explicit TemplateError(const std::string& message, int line = 0) : Error(message), line_(line) {}
  int line() const { return line_; }

 private:
  int line_;
};

/// What a template says with raise_exception(message), word for word.
class RaisedByTemplate : public TemplateError {
 public:
  using TemplateError::TemplateError;
};

}  // namespace zi::chat
