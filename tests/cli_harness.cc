#include "cli_harness.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

extern char** environ;

namespace zi::test {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string parent_and_name(int pid, int& parent) {
  std::ifstream stat(fmt::format("/proc/{}/stat", pid));
  std::string line;
  std::getline(stat, line);
  const auto open = line.find('('), close = line.rfind(')');
  if (open == std::string::npos || close == std::string::npos) return "";
  char state = 0;
  std::istringstream(line.substr(close + 1)) >> state >> parent;
  return line.substr(open + 1, close - open - 1);
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  path_ = std::filesystem::temp_directory_path() / "zero-infer-XXXXXX";
  if (mkdtemp(path_.data()) == nullptr) throw std::runtime_error("no temporary folder");
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string read_file(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

std::vector<nlohmann::json> json_lines(const std::string& text) {
  std::vector<nlohmann::json> out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    auto json = nlohmann::json::parse(line, nullptr, false);
    EXPECT_FALSE(json.is_discarded()) << line;
    out.push_back(std::move(json));
  }
  return out;
}

Job::Job(int ranks, const std::vector<std::string>& arguments, const std::string& input,
         const std::vector<int>& closed)
    : started_(now()) {
  write_file(folder_ / "in", input);
  std::vector<std::string> words;
  if (ranks > 0) {
    words = {ZI_MPIEXEC, "--oversubscribe", "--bind-to", "none", "-np", std::to_string(ranks)};
  }
  words.push_back(ZI_BINARY);
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  constexpr int kCreate = O_WRONLY | O_CREAT | O_TRUNC;
  posix_spawn_file_actions_addopen(&files, 0, (folder_ / "in").c_str(), O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, (folder_ / "out").c_str(), kCreate, 0600);
  posix_spawn_file_actions_addopen(&files, 2, (folder_ / "err").c_str(), kCreate, 0600);
  for (const int fd : closed) posix_spawn_file_actions_addclose(&files, fd);
  const int failed = posix_spawnp(&pid_, argv[0], &files, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  if (failed != 0) throw std::runtime_error(fmt::format("{} does not start", words[0]));
}

Job::~Job() {
  if (pid_ < 0) return;
  for (int rank : rank_pids()) kill(rank, SIGKILL);
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

std::string Job::err() const { return read_file(folder_ / "err"); }

void Job::signal(int number) const { kill(pid_, number); }

std::vector<int> Job::rank_pids() const {
  std::vector<int> pids;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    int parent = 0;
    const int pid = std::stoi(name);
    if (parent_and_name(pid, parent) == "zero-infer" && (parent == pid_ || pid == pid_))
      pids.push_back(pid);
  }
  return pids;
}

Ended Job::wait(double seconds) {
  Ended ended;
  int status = 0;
  const double start = now();
  while (waitpid(pid_, &status, WNOHANG) == 0) {
    if (now() - start > seconds) {
      ADD_FAILURE() << "the job did not end in " << seconds << " s\n" << read_file(folder_ / "err");
      for (int rank : rank_pids()) kill(rank, SIGKILL);
      kill(pid_, SIGKILL);
      waitpid(pid_, &status, 0);
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  pid_ = -1;
  ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  ended.seconds = now() - started_;
  ended.out = read_file(folder_ / "out");
  ended.err = read_file(folder_ / "err");
  return ended;
}

Ended run_job(int ranks, const std::vector<std::string>& arguments, const std::string& input,
              const std::vector<int>& closed) {
  return Job(ranks, arguments, input, closed).wait();
}

std::string many_prompts(int count, int most_new_tokens) {
  const std::vector<std::string> starts = {"In the beginning", "Jesus wept.", "Thou shalt not",
                                           "And it came to pass, when"};
  std::string out;
  for (int i = 0; i < count; ++i) {
    out += nlohmann::json{{"id", "p" + std::to_string(i)},
                          {"prompt", starts[static_cast<std::size_t>(i) % starts.size()]},
                          {"max_new_tokens", 1 + (i * 13) % most_new_tokens}}
               .dump() +
           "\n";
  }
  return out;
}

std::multiset<std::string> ids_of(const std::vector<nlohmann::json>& lines) {
  std::multiset<std::string> ids;
  for (const auto& line : lines) ids.insert(line.at("id").get<std::string>());
  return ids;
}

std::multiset<std::string> expected_ids(int count) {
  std::multiset<std::string> ids;
  for (int i = 0; i < count; ++i) ids.insert("p" + std::to_string(i));
  return ids;
}

std::string model() { return std::string(ZI_TEST_DATA) + "/bloom-kjv"; }

std::string copy_of_model(const TemporaryFolder& folder) {
  const std::string to = folder / "model";
  std::filesystem::copy(model(), to, std::filesystem::copy_options::recursive);
  return to;
}

}  // namespace zi::test
