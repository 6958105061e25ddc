// What jobs do to files: nothing is lost and nothing is there twice, whatever happens to the job.

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "base/file_descriptor.h"
#include "cli_harness.h"
#include "nan_checkpoint.h"
#include "open_files.h"

namespace zi::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

const std::string kTwoPrompts =
    "{\"prompt\": \"Jesus wept.\", \"id\": \"a\"}\n{\"prompt_ids\": [3495, 262], \"id\": \"b\"}\n";

std::vector<std::string> with(std::vector<std::string> base, const std::vector<std::string>& more) {
  base.insert(base.end(), more.begin(), more.end());
  return base;
}

/// Arguments of a short job.
std::vector<std::string> job(const std::string& model, const std::string& prompts,
                             const std::vector<std::string>& more) {
  return with({"--model", model, "--prompts", prompts, "--max-new-tokens", "3"}, more);
}

void expect_refused(const std::vector<std::string>& arguments, const std::string& one,
                    const std::string& other) {
  const Ended ended = run_job(0, arguments);
  EXPECT_EQ(ended.code, 2) << ended.err;
  EXPECT_THAT(ended.err, AllOf(HasSubstr(one), HasSubstr(other), HasSubstr("are the same file")));
}

TEST(Outputs, ThatNameAFileOfTheJobAreRefusedAndTheFileStays) {
  const TemporaryFolder folder;
  const std::string model = copy_of_model(folder);
  const std::string in = folder / "in.jsonl";
  write_file(in, kTwoPrompts);
  write_file(folder / "run.yaml", "model: " + model + "\nprompts: " + in + "\n");
  fs::create_directory(folder / "x");
  fs::create_symlink("in.jsonl", folder / "link");
  fs::create_hard_link(in, folder / "hard");
  for (const char* flag : {"--output", "--trace"}) {
    for (const char* name : {"x/../in.jsonl", "link", "hard"}) {
      const std::string path = folder / name;
      expect_refused(job(model, in, {flag, path}), fmt::format("{} {}", flag, path),
                     "--prompts " + in);
    }
    expect_refused({"--config", folder / "run.yaml", flag, folder / "x/../run.yaml"}, flag,
                   "--config");
    for (const char* name : {"tokenizer.json", "config.json", "model-00001-of-00003.safetensors"}) {
      expect_refused(job(model, in, {flag, fmt::format("{}/{}", model, name)}), flag,
                     "the model's file");
    }
  }
  expect_refused(job(model, in, {"--output", folder / "new", "--trace", folder / "x/../new"}),
                 "--output", "--trace");
  expect_refused({"--model", model, "--benchmark", "--output", model + "/config.json"}, "--output",
                 "the model's file");
  EXPECT_EQ(read_file(in), kTwoPrompts);
  EXPECT_FALSE(fs::exists(folder / "new"));
  EXPECT_EQ(run_job(0, job(model, in, {"--output", model + "/out.jsonl"})).code, 0)
      << "results may be next to the model";
}

TEST(Outputs, ThatNameAShardFileAreRefused) {
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl", kTwoPrompts);
  const auto arguments =
      job(model(), folder / "in.jsonl", {"--nvme-offload-path", folder / "nvme"});
  ASSERT_EQ(run_job(0, arguments).code, 0);
  for (const auto& e : fs::recursive_directory_iterator(folder / "nvme")) {
    if (e.path().extension() != ".shard") continue;
    expect_refused(with(arguments, {"--output", e.path()}), "--output", "the shard file");
  }
}

TEST(Outputs, KeepWhatStandsThereUntilThereIsAResult) {
  const TemporaryFolder folder;
  const std::string out = folder / "out.jsonl";
  const std::string trace = folder / "trace.json";
  const std::string bad = folder / "bad.jsonl";
  write_file(bad, "{\"prompt\": \"\"}\n{}\n{\"prompt_ids\": [99999]}\n");
  write_file(out, "earlier results\n");
  write_file(trace, "an earlier trace\n");
  const Ended ended = run_job(2, job(model(), bad, {"--output", out, "--trace", trace}));
  EXPECT_EQ(ended.code, 3) << ended.err;
  EXPECT_THAT(ended.err, AllOf(HasSubstr("3 prompts failed (named above); there were no others; "
                                         "nothing was written to " +
                                         out),
                               HasSubstr("no trace was written to " + trace)));
  EXPECT_EQ(read_file(out), "earlier results\n");
  EXPECT_EQ(read_file(trace), "an earlier trace\n");
  // Nor does a benchmark of nothing but sizes that do not fit.
  const Ended benchmark = run_job(0, {"--model", model(), "--benchmark", "--batch-size", "200,300",
                                      "--kv-budget", "1MiB", "--output", out});
  EXPECT_EQ(benchmark.code, 2) << benchmark.err;
  EXPECT_EQ(read_file(out), "earlier results\n");
  // A job that is refused makes no file.
  EXPECT_EQ(run_job(0, job(model(), bad, {"--output", folder / "new", "--kv-budget", "1kB"})).code,
            2);
  EXPECT_FALSE(fs::exists(folder / "new"));
  write_file(folder / "in.jsonl", kTwoPrompts);
  EXPECT_EQ(run_job(0, job(model(), folder / "in.jsonl", {"--output", out})).code, 0);
  EXPECT_EQ(json_lines(read_file(out)).size(), 2u) << "the earlier ones are gone";
}

TEST(Outputs, OfAFifoThatNobodyReadsAreRefusedInsteadOfWaiting) {
  const TemporaryFolder folder;
  ASSERT_EQ(mkfifo((folder / "fifo").c_str(), 0600), 0);
  write_file(folder / "in.jsonl", kTwoPrompts);
  const Ended ended = run_job(2, job(model(), folder / "in.jsonl", {"--output", folder / "fifo"}));
  EXPECT_EQ(ended.code, 2);
  EXPECT_THAT(ended.err, HasSubstr("nothing reads this FIFO"));
}

/// Waits until the file has this many more bytes than now.
void wait_for_growth(const std::string& path, std::uintmax_t bytes) {
  std::error_code missing;
  const auto size = [&] {
    const auto now = fs::file_size(path, missing);
    return missing ? 0 : now;
  };
  const auto begin = size();
  for (int i = 0; i < 4000 && size() < begin + bytes; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

/// Whether the process, of another parent, is gone or only waits to be reaped after this time at
/// most.
bool ends_within(int pid, double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  do {
    std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
    std::string text;
    if (!std::getline(stat, text)) return true;
    const std::size_t name_end = text.rfind(')');  // `PID (NAME) STATE ..`
    if (name_end != std::string::npos && text.substr(name_end + 2, 1) == "Z") return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

class KilledJob : public testing::TestWithParam<int> {};

TEST_P(KilledJob, IsResumedAtOnceWithEachPromptOnce) {
  const TemporaryFolder folder;
  const std::string out = folder / "out.jsonl";
  constexpr int kPrompts = 600;
  write_file(folder / "in.jsonl", many_prompts(kPrompts, 20));
  const std::vector<std::string> arguments = {"--model",  model(), "--prompts", folder / "in.jsonl",
                                              "--output", out,     "--resume"};
  std::vector<int> ranks;
  for (const std::uintmax_t bytes : {1u, 3000u, 100u, 9000u, 20u}) {
    // Each one begins while the one before it may still be dying.
    Job job(GetParam(), arguments);
    wait_for_growth(out, bytes);
    for (const int rank : job.rank_pids()) ranks.push_back(rank);
    job.signal(SIGKILL);
    EXPECT_EQ(job.wait(20).code, 128 + SIGKILL) << "it ended before it was killed";
  }
  // The last one's ranks notice a while after their mpirun is gone; on a loaded machine later than
  // a job waits for the file.
  for (const int rank : ranks) EXPECT_TRUE(ends_within(rank, 60)) << "a rank outlived its mpirun";
  const Ended ended = run_job(GetParam(), arguments);
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_THAT(ended.err, Not(HasSubstr(" 0 finished sequences")));
  EXPECT_EQ(ids_of(json_lines(read_file(out))), expected_ids(kPrompts));
}

// Without mpirun, and under one that dies before its ranks.
INSTANTIATE_TEST_SUITE_P(Ranks, KilledJob, testing::Values(0, 2));

TEST(Resume, CountsWhatAnotherJobWroteUntilItEnded) {
  const TemporaryFolder folder;
  const std::string out = folder / "out.jsonl";
  write_file(folder / "in.jsonl", many_prompts(6, 4));
  const std::vector<std::string> arguments = {"--model",  model(), "--prompts", folder / "in.jsonl",
                                              "--output", out,     "--resume"};
  ASSERT_EQ(run_job(0, arguments).code, 0);
  const std::string all = read_file(out);
  const std::size_t half = all.find('\n', all.size() / 2) + 1;
  write_file(out, all.substr(0, half));
  FileDescriptor other(open(out.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
  ASSERT_EQ(flock(other.get(), LOCK_EX), 0);
  Job job(0, arguments);
  // From here on it waits for the lock; it must not have counted before.
  ASSERT_TRUE(wait_until([&] {
    const std::vector<int> ranks = job.rank_pids();
    return ranks.size() == 1 && times_open(out, std::to_string(ranks[0])) > 0;
  }));
  const std::string rest = all.substr(half);
  ASSERT_EQ(write(other.get(), rest.data(), rest.size()), static_cast<ssize_t>(rest.size()));
  other.close();
  const Ended ended = job.wait();
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("6 finished sequences"));
  EXPECT_EQ(read_file(out), all);
}

TEST(Resume, RefusesOtherPromptsAndOtherKindsOfResultsBeforeItLoads) {
  const TemporaryFolder folder;
  const std::string in = folder / "in.jsonl";
  const std::string out = folder / "out.jsonl";
  write_file(in, kTwoPrompts);
  ASSERT_EQ(run_job(0, job(model(), in, {"--output", out})).code, 0);
  const std::string generated = read_file(out);
  EXPECT_EQ(json_lines(generated).at(1).at("prompt_ids"), nlohmann::json({3495, 262}));
  const auto refused = [&](const std::vector<std::string>& more) {
    const Ended ended = run_job(2, with(job(model(), in, {"--output", out, "--resume"}), more));
    EXPECT_EQ(ended.code, 2) << ended.err;
    return ended.err;
  };
  EXPECT_THAT(refused({"--score"}), HasSubstr(out + ":1 was written without --score"));
  write_file(in,
             "{\"prompt\": \"Jesus wept.\", \"id\": \"a\"}\n{\"prompt_ids\": [3495, 263], "
             "\"id\": \"b\"}\n");
  EXPECT_THAT(refused({}), HasSubstr("in.jsonl:2: id `\"b\"` is in the output file with another"));
  EXPECT_EQ(read_file(out), generated);

  write_file(in, kTwoPrompts);
  ASSERT_EQ(run_job(0, job(model(), in, {"--output", out, "--score"})).code, 0);
  EXPECT_THAT(refused({}), HasSubstr(out + ":1 was written with --score"));
  EXPECT_EQ(run_job(0, job(model(), in, {"--output", out, "--score", "--resume"})).code, 0);
}

/// A model that gives NaN for prompts with token 5.
std::string nan_model(const TemporaryFolder& folder) {
  make_nan_checkpoint(model(), folder / "nan", 5);
  return folder / "nan";
}

TEST(Resume, RefusesAnotherModelAndOtherSettingsByNameBeforeItLoads) {
  const TemporaryFolder folder;
  const std::string in = folder / "in.jsonl";
  const std::string out = folder / "out.jsonl";
  write_file(in, kTwoPrompts);
  const auto resumed = [&](const std::string& model, const std::vector<std::string>& more) {
    return run_job(
        2, with(job(model, in, {"--output", out, "--resume", "--temperature", "0.8"}), more));
  };
  ASSERT_EQ(resumed(model(), {}).code, 0);
  const std::string made = read_file(out);
  const auto refused = [&](const std::string& model, const std::vector<std::string>& more) {
    const Ended ended = resumed(model, more);
    EXPECT_EQ(ended.code, 2) << ended.err;
    EXPECT_THAT(ended.err, Not(HasSubstr("loaded")));
    EXPECT_EQ(read_file(out), made);
    return ended.err;
  };
  EXPECT_THAT(refused(model(), {"--seed", "5"}),
              HasSubstr("in.jsonl:1: id `\"a\"` is in the output file with other settings: seed 0 "
                        "there and 5 here"));
  EXPECT_THAT(refused(model(), {"--top-p", "0.9"}), HasSubstr("top_p unset there and 0.9 here"));
  EXPECT_THAT(refused(nan_model(folder), {}),
              HasSubstr(out + ":1 was made by another model: `bloom-kjv@"));
  EXPECT_THAT(refused(model(), {"--weight-format", "int8"}), HasSubstr("by another model"));
  // The same model elsewhere is the same; so are other ranks, tiers and lanes, and more prompts.
  write_file(in, kTwoPrompts + "{\"prompt\": \"more\"}\n");
  const Ended ended = resumed(copy_of_model(folder), {"--cpu-offload", "--batch-size", "3"});
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(json_lines(read_file(out)).size(), 3u);

  // Lines of older versions do not say by what they were made.
  std::string older;
  for (auto& line : json_lines(read_file(out))) {
    line.erase("settings");
    older += line.dump() + "\n";
  }
  write_file(out, older);
  const Ended warned = resumed(model(), {"--seed", "5"});
  EXPECT_EQ(warned.code, 0) << warned.err;
  EXPECT_THAT(warned.err, HasSubstr("3 lines do not say by which model and with which settings"));
}

TEST(Resume, SaysThatFinishedTextsHaveAnotherLimit) {
  const TemporaryFolder folder;
  const std::string in = folder / "in.jsonl";
  const std::string out = folder / "out.jsonl";
  write_file(in, kTwoPrompts);
  const auto with_limit = [&](const char* limit) {
    return std::vector<std::string>{"--model",          model(), "--prompts", in,
                                    "--output",         out,     "--resume",  "--ignore-eos",
                                    "--max-new-tokens", limit};
  };
  ASSERT_EQ(run_job(0, with_limit("3")).code, 0);
  const std::string before = read_file(out);
  EXPECT_THAT(run_job(0, with_limit("3")).err, Not(HasSubstr("limit")));
  const Ended ended = run_job(0, with_limit("4"));
  EXPECT_EQ(ended.code, 0);
  const auto said = ended.err.find("with 3 new tokens, and its limit is now 4 (--max-new-tokens)");
  ASSERT_NE(said, std::string::npos) << ended.err;
  EXPECT_EQ(ended.err.find("limit is now", said + 40), std::string::npos) << ended.err;
  EXPECT_EQ(read_file(out), before);
}

TEST(NotFinite, PromptsFailByNameAndTheOthersRun) {
  const TemporaryFolder folder;
  const std::string model = nan_model(folder);
  const std::string in = folder / "in.jsonl";
  const std::string out = folder / "out.jsonl";
  write_file(in, "{\"prompt_ids\": [3495, 5, 262]}\n" + kTwoPrompts + "{\"prompt_ids\": [5]}\n");
  for (const int ranks : {0, 2}) {
    fs::remove(out);
    // The second time, what is finished is skipped, and the others fail again.
    for (int time = 0; time < 2; ++time) {
      const Ended ended = run_job(ranks, job(model, in, {"--output", out, "--resume"}));
      EXPECT_EQ(ended.code, 3) << ended.err;
      EXPECT_THAT(ended.err, AllOf(HasSubstr("in.jsonl:1: the model's logits after its 3 prompt"),
                                   HasSubstr("in.jsonl:4: "), HasSubstr("2 prompts failed")));
      const auto advice = ended.err.find("try --compute-dtype float32");
      ASSERT_NE(advice, std::string::npos) << ended.err;
      EXPECT_EQ(ended.err.find("--compute-dtype", advice + 20), std::string::npos) << ended.err;
      EXPECT_EQ(ids_of(json_lines(read_file(out))), (std::multiset<std::string>{"a", "b"}));
    }
  }
}

TEST(NotFinite, APromptThatIsNotScoredHasNoResult) {
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl", "{\"prompt_ids\": [3495, 5, 262]}\n" + kTwoPrompts);
  const Ended ended = run_job(0, job(nan_model(folder), folder / "in.jsonl",
                                     {"--output", "-", "--score", "--compute-dtype", "float32"}));
  EXPECT_EQ(ended.code, 3);
  EXPECT_THAT(ended.err, AllOf(HasSubstr("in.jsonl:1: the model's logits of its tokens hold NaN"),
                               HasSubstr("products are already float32")));
  EXPECT_EQ(ids_of(json_lines(ended.out)), (std::multiset<std::string>{"a", "b"}));
}

TEST(NotFinite, EndsABenchmark) {
  const TemporaryFolder folder;
  // The tokens of the prompt are bytes' tokens: the model has NaN for one of them.
  make_nan_checkpoint(model(), folder / "nan", 262);
  const Ended ended = run_job(2, {"--model", folder / "nan", "--benchmark", "--batch-size", "1",
                                  "--prompt", "In the beginning", "--max-new-tokens", "2"});
  EXPECT_EQ(ended.code, 1) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("prompts failed (named above): there is nothing to measure"));
}

TEST(StandardStreams, AClosedInputIsSaidToBeClosed) {
  for (const int ranks : {0, 2}) {
    const Ended ended = run_job(ranks, {"--model", model(), "--prompts", "-"}, "", {0});
    EXPECT_EQ(ended.code, 2) << ended.err;
    EXPECT_THAT(ended.err, HasSubstr("reads standard input, which is closed"));
    EXPECT_LT(ended.seconds, 20);
  }
}

TEST(StandardStreams, MayBeClosedWhereTheyAreNotUsed) {
  const TemporaryFolder folder;
  const std::string out = folder / "out.jsonl";
  write_file(folder / "in.jsonl", kTwoPrompts);
  for (const int ranks : {0, 2}) {
    for (const std::vector<int>& closed : {std::vector{0}, {1}, {2}, {0, 1}, {0, 1, 2}}) {
      fs::remove(out);
      const Ended ended =
          run_job(ranks, job(model(), folder / "in.jsonl", {"--output", out}), "", closed);
      EXPECT_EQ(ended.code, 0) << ended.err;
      // Nothing else in it: no descriptor of a log or a library is the file's.
      EXPECT_EQ(ids_of(json_lines(read_file(out))), (std::multiset<std::string>{"a", "b"}));
    }
  }
}

TEST(StandardStreams, AClosedOutputIsNotTakenForResults) {
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl", kTwoPrompts);
  for (const std::vector<std::string>& arguments :
       {job(model(), folder / "in.jsonl", {}),
        job(model(), folder / "in.jsonl", {"--output", "-"}),
        {"limits", "--output", folder / "limits.json"}}) {
    const Ended ended = run_job(0, arguments, "", {1});
    EXPECT_EQ(ended.code, 2);
    EXPECT_THAT(ended.err, HasSubstr("standard output, which is closed"));
    EXPECT_LT(ended.seconds, 15) << "nothing was measured";
  }
}

}  // namespace
}  // namespace zi::test
