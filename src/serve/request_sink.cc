#include "serve/request_sink.h"

#include <chrono>
#include <utility>

namespace zi {
namespace {

double age_of(RequestQueue::Clock::time_point then) {
  return std::chrono::duration<double>(RequestQueue::Clock::now() - then).count();
}

}  // namespace

void RequestSink::started(std::uint64_t index, int, const std::string&) {
  RequestQueue::Place place = queue_->find(index);
  if (place.answer == nullptr) return;
  tasks_.push_back({std::move(place.answer),
                    [number = place.number](PendingAnswer& answer) { answer.started(number); }});
}

void RequestSink::told(std::uint64_t index, const Delta& delta) {
  RequestQueue::Place place = queue_->tell(index);
  if (place.answer == nullptr) return;
  if (place.told) metrics_->token(age_of(*place.told));
  tasks_.push_back({std::move(place.answer), [number = place.number, delta](PendingAnswer& answer) {
                      answer.told(number, delta);
                    }});
}

void RequestSink::finished(const Result& result) {
  RequestQueue::Place place = queue_->finish(result.index);
  if (place.answer == nullptr) return;
  metrics_->finished(result, age_of(place.arrived), place.told.has_value());
  tasks_.push_back(
      {std::move(place.answer), [number = place.number, result](PendingAnswer& answer) {
         answer.finished(number, result);
       }});
}

void RequestSink::failed(std::uint64_t index, const std::string& why) {
  metrics_->failed();
  RequestQueue::Place place = queue_->fail(index);
  if (place.answer == nullptr) return;
  tasks_.push_back({std::move(place.answer), [error = ApiError::failed(why)](
                                                 PendingAnswer& answer) { answer.failed(error); }});
}

void RequestSink::ranks(std::span<const RankStatus> ranks) {
  metrics_->ranks(ranks);
  answers_->post(tasks_);
}

}  // namespace zi
