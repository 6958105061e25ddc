// Recording that fails leaves the stream as it was, and no error for later calls.

#include "backend/cuda/cuda_graph.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "zero_infer/cuda_backend.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr std::int64_t kCount = 1000;

class CudaGraphTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (cuda_device_count(&why) == 0) GTEST_SKIP() << "no GPU to test on: " << why;
    device_ = make_cuda_device(0);
    ops_ = make_cuda_ops(*device_);
    stream_ = device_->make_stream("compute");
    other_ = device_->make_stream("other");
    forked_ = device_->make_event();
    from_ = device_->allocate(kCount * sizeof(float));
    to_ = device_->allocate(kCount * sizeof(float));
    copy_by_kernel(*stream_);  // its kernel is loaded from here on
    stream_->synchronize();
  }

  /// A kernel that copies all values, whose launch is checked by cudaGetLastError.
  void copy_by_kernel(Stream& stream) {
    const std::int64_t slices[] = {kCount};
    ops_->interleave(from_.data(), DType::kFloat32, 1, 1, slices, to_.data(), stream);
  }

  /// Kernels whose launches are checked, copies, waits and graphs, on both streams.
  void expect_all_works(const std::string& after) {
    SCOPED_TRACE("after " + after);
    EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
    float value = 0;
    for (Stream* const stream : {stream_.get(), other_.get()}) {
      const std::vector<float> want(kCount, ++value);
      device_->copy(from_.data(), want.data(), kCount * sizeof(float), *stream);
      copy_by_kernel(*stream);
      EXPECT_EQ(download(*stream), want);
    }
    const std::vector<float> want(kCount, ++value);
    const auto graph = device_->record(*stream_, [&] { copy_by_kernel(*stream_); });
    ASSERT_NE(graph, nullptr);
    device_->copy(from_.data(), want.data(), kCount * sizeof(float), *stream_);
    graph->launch(*stream_);
    EXPECT_EQ(download(*stream_), want);
  }
  std::vector<float> download(Stream& stream) {
    std::vector<float> values(kCount);
    device_->copy(values.data(), to_.data(), kCount * sizeof(float), stream);
    stream.synchronize();
    return values;
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Ops> ops_;
  Buffer from_, to_;
  std::unique_ptr<Event> forked_;
  std::unique_ptr<Stream> stream_, other_;
};

TEST_F(CudaGraphTest, WorkThatCannotStandInAGraphIsRefusedAndAllElseGoesOn) {
  const std::vector<std::pair<std::string, std::function<void()>>> works = {
      {"an allocation", [&] { device_->allocate(1 << 20); }},
      {"a wait by the host", [&] { stream_->synchronize(); }},
      {"a wait by the host whose error was lost",
       [&] {
         try {
           stream_->synchronize();
         } catch (const CudaError&) {
         }
       }},
      {"another stream that is not joined", [&] {
         stream_->record(*forked_);
         other_->wait(*forked_);
         copy_by_kernel(*other_);
       }}};
  for (const auto& [name, work] : works) {
    EXPECT_THROW(device_->record(*stream_,
                                 [&] {
                                   copy_by_kernel(*stream_);
                                   work();
                                 }),
                 CudaError)
        << name;
    expect_all_works(name);
  }
}

TEST_F(CudaGraphTest, WhatTheWorkThrowsComesOutAndAllElseGoesOn) {
  EXPECT_THROW(device_->record(*stream_,
                               [&] {
                                 copy_by_kernel(*stream_);
                                 throw std::runtime_error("no CUDA error at all");
                               }),
               std::runtime_error);
  expect_all_works("an exception of the work");
}

/// Two nodes that wait for each other.
cudaGraph_t graph_with_a_cycle() {
  cudaGraph_t graph = nullptr;
  cudaGraphNode_t nodes[2] = {};
  EXPECT_EQ(cudaGraphCreate(&graph, 0), cudaSuccess);
  for (cudaGraphNode_t& node : nodes) {
    EXPECT_EQ(cudaGraphAddEmptyNode(&node, graph, nullptr, 0), cudaSuccess);
  }
  const cudaGraphNode_t others[2] = {nodes[1], nodes[0]};
#if CUDART_VERSION >= 13000
  EXPECT_EQ(cudaGraphAddDependencies(graph, nodes, others, nullptr, 2), cudaSuccess);
#else
  EXPECT_EQ(cudaGraphAddDependencies(graph, nodes, others, 2), cudaSuccess);
#endif
  return graph;
}

TEST_F(CudaGraphTest, AGraphThatCannotBeInstantiatedLeavesNoErrorForLaterCalls) {
  EXPECT_THROW(instantiate_graph(graph_with_a_cycle()), CudaError);
  expect_all_works("a failed instantiation");
}

}  // namespace
}  // namespace zi
