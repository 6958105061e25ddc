#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "base/output_file.h"
#include "text/finished_prompts.h"
#include "text/result.h"

namespace zi {

/// The output file of a job, written by rank 0: each line is whole and on its way to the disk when
/// `write` returns. No other job can write the file while the object lives.
class ResultFile {
 public:
  /// `path` may be `-` for standard output. Opens and locks the file; its contents are dropped with
  /// the first result. With `resume` they stay and are read, and an unfinished last line is cut
  /// off. Throws IoError (directory missing, not writable, written by another job), and PromptError
  /// with `resume` for a file with a line that is not one of ours: it is then left alone.
  ResultFile(const std::filesystem::path& path, bool resume);

  /// With `resume`: what the file held. None else.
  std::shared_ptr<const FinishedPrompts> finished() const { return finished_; }
  /// Forgets it, which may take much memory.
  void forget_finished() { finished_.reset(); }

  /// Throws IoError naming the path (disk full, ..); the file then holds whole lines only.
  void write(const Result& result);
  /// Keeps the file even without a result.
  void keep() { file_.keep(); }

 private:
  OutputFile file_;
  std::shared_ptr<const FinishedPrompts> finished_;
};

}  // namespace zi
