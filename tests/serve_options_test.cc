// The command line of `zero-infer serve`.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "tests/config_refusal.h"
#include "tests/temporary_directory.h"

namespace zi {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

CommandLine serve(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"serve", "--model", "m"});
  return parse(arguments);
}

std::string serve_refusal(const std::vector<std::string>& arguments) {
  return refusal([&] { serve(arguments); });
}

TEST(ServeOptionsTest, ReadsEveryFlag) {
  const ServeOptions options = serve({"--host",
                                      "0.0.0.0",
                                      "--port",
                                      "80",
                                      "--api-key",
                                      "k",
                                      "--cors-origin",
                                      "*",
                                      "--tls-certificate",
                                      "c.pem",
                                      "--tls-key",
                                      "k.pem",
                                      "--served-model-name",
                                      "name",
                                      "--max-queue",
                                      "7",
                                      "--max-body",
                                      "2MiB",
                                      "--drain-seconds",
                                      "0"})
                                   .serve;
  EXPECT_EQ(options.host, "0.0.0.0");
  EXPECT_EQ(options.port, 80);
  EXPECT_EQ(options.api_key, "k");
  EXPECT_EQ(options.cors_origin, "*");
  EXPECT_EQ(options.tls_certificate, "c.pem");
  EXPECT_EQ(options.tls_key, "k.pem");
  EXPECT_EQ(options.served_model_name, "name");
  EXPECT_EQ(options.max_queue, 7);
  EXPECT_EQ(options.max_body, 2U << 20);
  EXPECT_EQ(options.drain_seconds, 0);
}

TEST(ServeOptionsTest, TakesOriginsOfPages) {
  for (const std::string origin : {"*", "https://page", "http://localhost:3000", "http://[::1]:80",
                                   "https://a-b.example.org:8443", "app+x.y://host"}) {
    EXPECT_EQ(serve({"--cors-origin", origin}).serve.cors_origin, origin);
  }
}

TEST(ServeOptionsTest, NeedsNoPromptsAndTakesTheFlagsOfARun) {
  const CommandLine line = serve({"--batch-size", "32", "--cpu-offload", "--temperature", "0.5"});
  EXPECT_EQ(line.command, Command::kServe);
  EXPECT_EQ(line.config.model, "m");
  EXPECT_THAT(line.config.batch_size, ElementsAre(32));
  EXPECT_TRUE(line.config.cpu_offload);
  EXPECT_THAT(line.given, ElementsAre("batch-size", "cpu-offload", "model", "temperature"))
      << "what was written, so that it holds for requests as well";
}

TEST(ServeOptionsTest, RefusesWhatIsForAJobAndWhatCannotBe) {
  for (const std::string flag : {"--prompt", "--prompts", "--output", "--logprobs", "--trace"}) {
    EXPECT_THAT(serve_refusal({flag, "5"}), AllOf(HasSubstr(flag), HasSubstr("is for a job")));
  }
  for (const std::string flag : {"--chat", "--score", "--resume", "--benchmark"}) {
    EXPECT_THAT(serve_refusal({flag}), HasSubstr("is for a job"));
  }
  EXPECT_THAT(serve_refusal({"--batch-size", "1,8"}), HasSubstr("--benchmark"));
  EXPECT_THAT(serve_refusal({"--port", "65536"}), HasSubstr("--port: must be from 0 to 65535"));
  EXPECT_THAT(serve_refusal({"--port", "http"}), HasSubstr("is not a whole number"));
  EXPECT_THAT(serve_refusal({"--max-queue", "0"}), HasSubstr("--max-queue"));
  EXPECT_THAT(serve_refusal({"--drain-seconds", "-1"}), HasSubstr("--drain-seconds"));
  EXPECT_THAT(serve_refusal({"--host", ""}), HasSubstr("must not be empty"));
  EXPECT_THAT(serve_refusal({"--api-key", "a b"}), HasSubstr("printable ASCII"));
  for (const std::string origin :
       {"", "notanurl", "a\nb", "https://", "https://page/", "https://page/x", "https://page?x",
        "**", "//page", "https://a b", "https://Page", "https://page:", "https://page:port",
        "https://me@page", "null", "https://[::1", "https://a,https://b"}) {
    EXPECT_THAT(serve_refusal({"--cors-origin", origin}), HasSubstr("scheme://host[:port]"))
        << origin;
  }
  EXPECT_THAT(serve_refusal({"--max-body", "0"}), HasSubstr("--max-body: must not be 0"));
  EXPECT_THAT(serve_refusal({"--tls-key", "k.pem"}), HasSubstr("--tls-certificate"));
  EXPECT_THAT(serve_refusal({"--prot", "80"}), HasSubstr("did you mean `--port`?"));
  EXPECT_THAT(refusal([] { parse({"serve"}); }), HasSubstr("no model"));
  EXPECT_THAT(refusal([] {
                parse({"--model", "m", "--prompt", "p", "--port", "80"});
              }),
              HasSubstr("unknown flag `--port`"));
}

TEST(ServeOptionsTest, LeavesOutWhatAFileSaysForJobs) {
  const test::TemporaryDirectory folder;
  const std::string file = folder.path() / "job.yaml";
  std::ofstream(file) << "model: m\nprompt: [a, b]\noutput: o.jsonl\nmax_new_tokens: 9\n";
  const CommandLine line = parse({"serve", "--config", file});
  EXPECT_TRUE(line.config.prompt.empty());
  EXPECT_FALSE(line.config.output);
  EXPECT_THAT(line.unused_keys, ElementsAre("prompt", "output"));
  EXPECT_EQ(line.config.max_new_tokens, 9);
  EXPECT_TRUE(line.given.contains("max-new-tokens"));
  std::ofstream(file) << "model: m\nport: 80\n";
  EXPECT_THAT(refusal([&] {
                parse({"serve", "--config", file});
              }),
              HasSubstr("unknown key `port`"));
}

TEST(ServeOptionsTest, TakesTheKeyFromTheEnvironment) {
  ::setenv("ZERO_INFER_API_KEY", "secret", 1);
  EXPECT_EQ(serve({}).serve.api_key, "secret");
  EXPECT_EQ(serve({"--api-key", "flag"}).serve.api_key, "flag");
  ::setenv("ZERO_INFER_API_KEY", "", 1);
  EXPECT_FALSE(serve({}).serve.api_key);
  ::unsetenv("ZERO_INFER_API_KEY");
  EXPECT_FALSE(serve({}).serve.api_key);
}

TEST(ServeOptionsTest, ShowsItsOwnFlags) {
  const CommandLine line = parse({"serve", "--help"});
  EXPECT_TRUE(line.exit_now);
  for (const char* flag : {"--host", "--port", "--api-key", "--cors-origin", "--max-queue",
                           "--max-body", "--served-model-name", "--drain-seconds", "--tls-key"}) {
    EXPECT_THAT(line.text, HasSubstr(flag));
  }
}

}  // namespace
}  // namespace zi
