// Any bytes as the body of a request: refused with an error that clients can read, or prompts that
// the engine takes and an answer that is JSON.

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "serve/bloom_api.h"
#include "serve/chat_answer.h"
#include "serve/chat_completion_request.h"
#include "serve/completion_answer.h"
#include "serve/completion_request.h"
#include "serve/tokenizer_endpoints.h"
#include "tests/serve_fixture.h"
#include "tests/temporary_directory.h"
#include "zero_infer/log.h"

namespace {

void check(bool good) {
  if (!good) std::abort();
}

/// A model with a chat template that takes whatever it gets.
const std::shared_ptr<const zi::ServedModel>& model() {
  static const zi::test::TemporaryDirectory folder;
  static const std::shared_ptr<const zi::ServedModel> made = [] {
    zi::set_log(zi::LogLevel::kQuiet, "");
    std::ofstream(folder.path() / "chat_template.jinja")
        << "{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls }}{% endfor %}{{ "
           "tools }}";
    return zi::test::byte_model({}, folder.path(), 4096);
  }();
  return made;
}

template <typename Read>
void take(Read read) {
  try {
    read();
  } catch (const zi::ApiError& error) {
    check(error.status() >= 400 && error.status() < 500);
    check(nlohmann::json::parse(error.to_json()).at("error").contains("message"));
  }
}

void check_prompts(const std::vector<zi::Prompt>& prompts) {
  check(!prompts.empty());
  for (const zi::Prompt& prompt : prompts) {
    check(!prompt.text && prompt.ids && !prompt.ids->empty());
    model()->admission().admit(prompt);  // throws nothing
  }
}

/// Answers every prompt of the request with these bytes.
template <typename Answer>
void answer(const zi::GenerationRequest& request, std::string_view bytes) {
  check(request.prompts.size() == request.prompt_texts.size());
  check_prompts(request.prompts);
  const auto reply = std::make_shared<zi::test::FakeReply>();
  Answer made(reply, model(), request);
  const std::size_t answers = request.prompts.size() * request.shape.choices;
  for (std::size_t i = 0; i < answers; ++i) {
    zi::Result result;
    result.text = bytes.substr(0, 64);
    result.token_ids = {1};
    made.finished(i, result);
  }
  check(reply->answers == 1 && reply->ended);
  if (request.shape.stream) {
    reply->events();
    check(reply->done);
  } else {
    check(reply->sent().at("choices").size() == answers);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  zi::UnknownFields unknown;
  zi::BloomApi bloom;
  take([&] {
    answer<zi::CompletionAnswer>(zi::read_completion_request(body, *model(), unknown), body);
  });
  take([&] {
    answer<zi::ChatAnswer>(zi::read_chat_completion_request(body, *model(), unknown), body);
  });
  take([&] { zi::tokenize(body, *model(), unknown); });
  take([&] { zi::detokenize(body, *model(), unknown); });
  take([&] { bloom.tokenize(body, *model(), unknown); });
  take([&] { check_prompts(bloom.generate(body, nullptr, *model(), unknown).prompts); });
  take([&] { check_prompts(bloom.forward(body, nullptr, *model(), unknown).prompts); });
  return 0;
}
