#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace zi::test {

/// A folder that is removed with all it holds at the end of the test.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

void write_file(const std::string& path, const std::string& text);
std::string read_file(const std::string& path);

/// The JSON lines of a text; fails the test for a line that is none.
std::vector<nlohmann::json> json_lines(const std::string& text);

/// How often `part` stands in `text`.
std::size_t count_of(const std::string& text, const std::string& part);

/// How a process ended. `code` is the exit code, or 128 + the signal.
struct Ended {
  int code = 0;
  std::string out;
  std::string err;
  double seconds = 0;
};

/// A zero-infer job in the background: `ranks` 0 starts the program without mpirun. The standard
/// descriptors named by `closed` are closed.
class Job {
 public:
  Job(int ranks, const std::vector<std::string>& arguments, const std::string& input = "",
      const std::vector<int>& closed = {});
  ~Job();  // kills what still runs
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  /// Sends a signal to the started process (mpirun, or the program itself).
  void signal(int number) const;
  /// What it has written to standard error so far.
  std::string err() const;
  /// Process ids of the job's zero-infer ranks.
  std::vector<int> rank_pids() const;
  /// Waits for the end; the job is killed and the test fails after `seconds`.
  Ended wait(double seconds = 60);

 private:
  TemporaryFolder folder_;
  int pid_ = -1;
  double started_ = 0;
};

/// Runs a job to its end.
Ended run_job(int ranks, const std::vector<std::string>& arguments, const std::string& input = "",
              const std::vector<int>& closed = {});

/// `count` prompts of different lengths with ids p0, p1, ..
std::string many_prompts(int count, int most_new_tokens);
/// The ids of results, and those of many_prompts(count, ..).
std::multiset<std::string> ids_of(const std::vector<nlohmann::json>& lines);
std::multiset<std::string> expected_ids(int count);

/// The bundled model.
std::string model();
/// A writable copy of the bundled model in `folder`.
std::string copy_of_model(const TemporaryFolder& folder);

}  // namespace zi::test
