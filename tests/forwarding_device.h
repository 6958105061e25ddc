#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "zero_infer/device.h"

namespace zi::test {

/// A device that does what another one does, in everything: to be changed in one respect. Of
/// tests and benchmarks.
class ForwardingDevice : public Device {
 public:
  explicit ForwardingDevice(std::unique_ptr<Device> inner) : inner_(std::move(inner)) {}

  std::string name() const override { return inner_->name(); }
  bool is_host() const override { return inner_->is_host(); }
  int numa_node() const override { return inner_->numa_node(); }
  MemoryInfo memory() const override { return inner_->memory(); }
  MemoryInfo host_memory() const override { return inner_->host_memory(); }
  Buffer allocate(std::size_t bytes) override { return inner_->allocate(bytes); }
  Buffer allocate_for_loading(std::size_t bytes) override {
    return inner_->allocate_for_loading(bytes);
  }
  void take_pages(std::span<std::byte> part) override { inner_->take_pages(part); }
  Buffer allocate_pinned(std::size_t bytes) override { return inner_->allocate_pinned(bytes); }
  Buffer allocate_pinned_or_plain(std::size_t bytes) override {
    return inner_->allocate_pinned_or_plain(bytes);
  }
  using Device::make_stream;
  std::unique_ptr<Stream> make_stream(const std::string& name, StreamPriority priority) override {
    return inner_->make_stream(name, priority);
  }
  std::unique_ptr<Stream> make_stream_of_own_copies(const std::string& name) override {
    return inner_->make_stream_of_own_copies(name);
  }
  std::unique_ptr<Event> make_event() override { return inner_->make_event(); }
  double elapsed_seconds(const Event& start, const Event& end) const override {
    return inner_->elapsed_seconds(start, end);
  }
  void copy(void* dst, const void* src, std::size_t bytes, Stream& stream) override {
    inner_->copy(dst, src, bytes, stream);
  }
  std::unique_ptr<Graph> record(Stream& stream, const std::function<void()>& work) override {
    return inner_->record(stream, work);
  }
  void mark_begin(const std::string& name) override { inner_->mark_begin(name); }
  void mark_end() override { inner_->mark_end(); }
  void zero(void* dst, std::size_t bytes, Stream& stream) override {
    inner_->zero(dst, bytes, stream);
  }

  Device& inner() { return *inner_; }

 private:
  std::unique_ptr<Device> inner_;
};

}  // namespace zi::test
