#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/output.h"
#include "serve/answer_thread.h"
#include "serve/metrics.h"
#include "serve/request_queue.h"

namespace zi {

/// Hands what happens to prompts on to the answers that wait for it: the pass loop only puts it on
/// the thread of answers, once a pass. The pass loop's thread alone uses it.
class RequestSink final : public OutputSink {
 public:
  /// All outlive the sink.
  RequestSink(RequestQueue& queue, AnswerThread& answers, Metrics& metrics)
      : queue_(&queue), answers_(&answers), metrics_(&metrics) {}

  void started(std::uint64_t index, int rank, const std::string& prompt) override;
  void told(std::uint64_t index, const Delta& delta) override;
  void finished(const Result& result) override;
  void failed(std::uint64_t index, const std::string& why) override;
  void ranks(std::span<const RankStatus> ranks) override;

 private:
  RequestQueue* queue_;
  AnswerThread* answers_;
  Metrics* metrics_;
  std::vector<AnswerThread::Task> tasks_;  // of this pass
};

}  // namespace zi
