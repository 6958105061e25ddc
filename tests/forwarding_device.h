#pragma once

#include <memory>
#include <string>
#include <utility>

#include "zero_infer/device.h"

namespace zi::test {

/// A device that does what another one does: to be changed in one respect.
class ForwardingDevice : public Device {
 public:
  explicit ForwardingDevice(std::unique_ptr<Device> inner) : inner_(std::move(inner)) {}

  std::string name() const override { return inner_->name(); }
  MemoryInfo memory() const override { return inner_->memory(); }
  MemoryInfo host_memory() const override { return inner_->host_memory(); }
  Buffer allocate(std::size_t bytes) override { return inner_->allocate(bytes); }
  Buffer allocate_pinned(std::size_t bytes) override { return inner_->allocate_pinned(bytes); }
  std::unique_ptr<Stream> make_stream(const std::string& name) override {
    return inner_->make_stream(name);
  }
  std::unique_ptr<Event> make_event() override { return inner_->make_event(); }
  double elapsed_seconds(const Event& start, const Event& end) const override {
    return inner_->elapsed_seconds(start, end);
  }
  void copy(void* dst, const void* src, std::size_t bytes, Stream& stream) override {
    inner_->copy(dst, src, bytes, stream);
  }
  void zero(void* dst, std::size_t bytes, Stream& stream) override {
    inner_->zero(dst, bytes, stream);
  }

  Device& inner() { return *inner_; }

 private:
  std::unique_ptr<Device> inner_;
};

}  // namespace zi::test
