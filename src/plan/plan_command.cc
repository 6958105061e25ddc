#include "plan/plan_command.h"

#include <algorithm>
#include <utility>

#include "engine/open_model.h"
#include "plan/advice.h"
#include "plan/gpu_list.h"
#include "plan/plan_report.h"
#include "plan/planned_machine.h"
#include "plan/planner.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Of the larger caches of CPUs and GPUs.
constexpr double kCacheBytes = 64 << 20;

OpenModel open_for_plan(const RunConfig& config, ProductsOf products) {
  try {
    return open_model(config, MissingWeights::kAssume, products);
  } catch (const CheckpointError& error) {
    if (std::filesystem::is_directory(config.model)) throw;
    throw CheckpointError(std::string(error.what()) +
                          ". A plan needs only a config.json: config/models has some, "
                          "such as --model config/models/bloom-176b");
  }
}

double parameters_of(const ModelSpec& spec) {
  double count = 0;
  const auto add = [&count](const std::vector<TensorSpec>& tensors) {
    for (const TensorSpec& t : tensors) count += static_cast<double>(t.elements());
  };
  add(spec.vectors);
  add({spec.embedding});
  if (!spec.tied()) add(spec.head.matrices);
  add(spec.head.vectors);
  for (const UnitSpec& block : spec.blocks) {
    add(block.matrices);
    add(block.vectors);
  }
  return count;
}

/// Bytes of all ranks' weights that products read.
double weight_bytes(const MemoryPlan& plan) {
  double bytes = 0;
  for (const PartitionLayout& block : plan.blocks) {
    bytes += static_cast<double>(block.gathered_bytes());
  }
  return bytes + static_cast<double>(plan.head.front().gathered_bytes());
}

}  // namespace

std::string plan_text(const RunConfig& config, const PlanOptions& options) {
  PlanReport report;
  report.machine = choose_machine(config, options);
  const OpenModel open =
      open_for_plan(config, report.machine.device_is_host() ? ProductsOf::kCpu : ProductsOf::kAny);
  report.model = config.model;
  report.parameters = parameters_of(open.model->spec());
  report.tokens = options.tokens;
  report.notes = report.machine.notes;
  report.notes.insert(report.notes.end(), open.warnings.begin(), open.warnings.end());
  if (open.assumed) report.notes.push_back("there are no weights: bfloat16 is assumed");
  if (open.compute_dtype == DType::kFloat32) {
    report.notes.push_back("the rate of matrix products is for 16-bit types; float32 is slower");
  }
  const bool has_packed_products =
      open.compute_dtype != DType::kFloat32 &&
      is_hopper(report.machine.listed.empty() ? report.machine.limits.device
                                              : report.machine.listed);
  if (open.block_format.packed() && !report.machine.device_is_host() && !has_packed_products) {
    report.notes.push_back(
        "on GPUs other than Hopper's and in float32, packed weights are unpacked to memory for "
        "each product, which the rates here do not count");
  }
  const Planner planner(open, report.machine, options.tokens);
  report.plan = planner.plan(config);
  if (weight_bytes(report.plan) < kCacheBytes) {
    report.notes.push_back(
        "a model this small stays in caches: passes can be faster than memory allows");
  }
  for (const std::string& note : report.plan.notes) report.notes.push_back(note);
  if (auto note = planner.needless_offload(report.plan, config)) report.notes.push_back(*note);
  const ModelConfig& shape = open.model->config();
  report.kv_token_bytes = kv_token_bytes(shape, report.plan.compute_dtype);
  report.pass = planner.limit(report.plan, report.plan.lanes);
  report.batches = planner.batches(config);
  report.advice = advice_for(planner, open, config, report.plan, report.pass);
  return options.json ? report_json(report) : report_text(report);
}

}  // namespace zi
