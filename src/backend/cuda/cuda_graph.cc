#include "backend/cuda/cuda_graph.h"

#include "backend/cuda/cuda_support.h"

namespace zi {
namespace {

class CudaGraph final : public Graph {
 public:
  explicit CudaGraph(cudaGraph_t graph) { ZI_CUDA(cudaGraphInstantiate(&executable_, graph, 0)); }
  ~CudaGraph() override { cudaGraphExecDestroy(executable_); }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  void launch(Stream& stream) override {
    ZI_CUDA(cudaGraphLaunch(executable_, cuda_stream(stream)));
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

/// What a stream records, from here until `end` or until this object is destroyed: a stream left
/// recording would refuse all later work.
class Capture {
 public:
  explicit Capture(cudaStream_t stream) : stream_(stream) {
    // Only of this thread: the communicator's threads continue to call CUDA.
    ZI_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  }
  ~Capture() {
    if (!capturing_) return;
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();  // the exception that ends it says why
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaGraph_t end() {
    capturing_ = false;
    cudaGraph_t graph = nullptr;
    ZI_CUDA(cudaStreamEndCapture(stream_, &graph));
    return graph;
  }

 private:
  cudaStream_t stream_;
  bool capturing_ = true;
};

}  // namespace

std::unique_ptr<Graph> record_graph(cudaStream_t stream, const std::function<void()>& work) {
  Capture capture(stream);
  work();
  return instantiate_graph(capture.end());
}

std::unique_ptr<Graph> instantiate_graph(cudaGraph_t graph) {
  struct Destroy {
    void operator()(cudaGraph_t g) const { cudaGraphDestroy(g); }
  };
  const std::unique_ptr<CUgraph_st, Destroy> owner(graph);
  return std::make_unique<CudaGraph>(graph);
}

}  // namespace zi
