#pragma once

#include <string>
#include <string_view>

#include "serve/http/http_message.h"
#include "zero_infer/error.h"

namespace zi {

/// What is wrong with a request, or keeps the server from answering it, as clients of the OpenAI
/// API read it: {"error": {"message", "type", "param", "code"}} with an HTTP status.
class ApiError : public Error {
 public:
  struct Fields {
    std::string type = "invalid_request_error";
    std::string param{};  // the member of the body that is wrong; empty: null
    std::string code{};   // for programs; empty: null
  };
  ApiError(int status, const std::string& message, Fields fields)
      : Error(message), status_(status), fields_(std::move(fields)) {}
  /// 400: the member `param` of the body is wrong.
  static ApiError bad_field(const std::string& message, std::string param);
  /// 400 for what a PromptError says; it begins with the member's name in backquotes where it is
  /// about one.
  static ApiError bad_request(const std::string& message);
  /// 503 with Retry-After: loading, or about to end.
  static ApiError unavailable(const std::string& message);
  /// 503 for a request whose answer was not complete when the server had to leave.
  static ApiError stopped();
  /// 500: it is not the client's fault.
  static ApiError failed(const std::string& message);

  int status() const { return status_; }
  const Fields& fields() const { return fields_; }
  /// Seconds after which the client may try again; 0: it says nothing of that.
  int retry_after() const { return retry_after_; }
  ApiError& retry_after(int seconds) {
    retry_after_ = seconds;
    return *this;
  }

  /// The JSON object, without a newline.
  std::string to_json() const;
  HttpResponse response() const;

 private:
  int status_;
  Fields fields_;
  int retry_after_ = 0;
};

}  // namespace zi
