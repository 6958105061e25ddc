#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "zero_infer/bytes.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

/// Reads of a rank in flight while it loads: a disk wants several, whatever the cores; each has
/// about a MiB of memory.
constexpr int kFewestReads = 4;
constexpr int kMostReads = 16;

}  // namespace

Engine::Engine(World& world, Backend backend, RunConfig config)
    : world_(&world), backend_(std::move(backend)), config_(std::move(config)) {
  world.all_or_none([&] { open_model(); });
  make_memory_plan();
  std::vector<Agreed> mine;
  world.all_or_none([&] { mine = agreement(); });
  check_agreement(world, mine);
  if (world.rank() == 0) {
    const std::size_t total = plan_->device_bytes() + plan_->host_bytes();
    log_info(fmt::format("{}, {}; memory of a rank: {}", backend_.name, backend_.device->name(),
                         format_memory(static_cast<double>(total))));
    log_verbose("\n" + plan_->table());
  }
  // Collective, so not among what can fail on one rank alone.
  Buffer slots;
  if (world.size() > 1) {
    world.all_or_none(
        [&] { slots = backend_.communicator->allocate(*backend_.device, plan_->slots); });
  }
  world.all_or_none([&] {
    const LoadOptions options{
        .rank = world.rank(),
        .world = world.size(),
        .threads = std::clamp(threads_per_rank(world.local_size()), kFewestReads, kMostReads),
        .device_is_host = backend_.device_is_host,
        .show_progress = world.rank() == 0 && !config_.quiet,
        .model_name = directory_.filename().string(),
        .nvme_path = config_.nvme_offload_path};
    weights_ = std::make_unique<ModelWeights>(*backend_.device, *backend_.ops, *source_,
                                              model_->spec(), *plan_, options);
  });
  world.all_or_none([&] {
    const std::int64_t vocabulary =
        config_.score ? model_->config().vocabulary
                      : std::min<std::int64_t>(tokenizer_->size(), model_->config().vocabulary);
    runner_ = std::make_unique<PassRunner>(*backend_.device, *backend_.ops,
                                           backend_.communicator.get(), *model_, *weights_, *plan_,
                                           world_->rank(), world_->size(), vocabulary,
                                           static_cast<int>(config_.logprobs), std::move(slots));
  });
}

Engine::~Engine() = default;

void Engine::open_model() {
  directory_ = resolve_model(config_.model);
  if (directory_.filename().empty()) directory_ = directory_.parent_path();
  const ModelConfig model_config = ModelConfig::load(directory_);
  const auto tokenizer_file = directory_ / "tokenizer.json";
  const bool dummy = config_.load_format == LoadFormat::kDummy;
  if (std::filesystem::exists(tokenizer_file)) {
    tokenizer_ = Tokenizer::load(tokenizer_file);
  } else if (dummy) {
    if (world_->rank() == 0) {
      log_warning(fmt::format("{} has no tokenizer.json: each byte of a prompt is one token",
                              directory_.string()));
    }
    tokenizer_ = Tokenizer::bytes();
  } else {
    throw CheckpointError(fmt::format(
        "{} has no tokenizer.json; download it together with the weights", directory_.string()));
  }
  // Named once without knowing whether there is a head of its own, to learn the prefix.
  const std::string prefix = make_model(model_config, false)->spec().prefix;
  if (dummy) {
    const DType stored = config_.compute_dtype.value_or(DType::kBFloat16);
    source_ = make_dummy_weights(config_.seed, stored);
  } else {
    source_ = open_checkpoint(directory_, prefix);
  }
  model_ = make_model(model_config, source_->contains("lm_head.weight"));
  const DType stored = source_->stored_dtype(model_->spec().blocks.front().matrices.front().name);
  compute_dtype_ =
      config_.compute_dtype.value_or(stored == DType::kFloat32 ? DType::kBFloat16 : stored);
  // In float32 the weights keep their stored values; else they are converted once, while loading.
  weight_dtype_ = compute_dtype_ == DType::kFloat32 ? stored : compute_dtype_;
  if (weight_dtype_ != stored && world_->rank() == 0) {
    log_info(fmt::format("the checkpoint's {} weights are converted to {} while loading",
                         name_of(stored), name_of(weight_dtype_)));
  }
}

void Engine::make_memory_plan() {
  struct Memory {
    std::size_t device_free;
    std::size_t host_free;
    std::int64_t local_size;
  };
  Memory mine{};
  world_->all_or_none([&] {
    mine = {backend_.device->memory().free_bytes, backend_.device->host_memory().free_bytes,
            world_->local_size()};
  });
  std::vector<Memory> all(static_cast<std::size_t>(world_->size()));
  world_->all_gather(&mine, all.data(), sizeof(Memory));
  PlanInput input;
  input.model = model_.get();
  input.weight_dtype = weight_dtype_;
  input.compute_dtype = compute_dtype_;
  input.world = world_->size();
  input.device_is_host = backend_.device_is_host;
  input.device_free = std::ranges::min_element(all, {}, &Memory::device_free)->device_free;
  input.host_free = std::ranges::min_element(all, {}, &Memory::host_free)->host_free;
  input.local_size =
      static_cast<int>(std::ranges::max_element(all, {}, &Memory::local_size)->local_size);
  world_->all_or_none([&] { plan_ = make_plan(input, config_); });
}

std::vector<Agreed> Engine::agreement() const {
  const ModelConfig& c = model_->config();
  std::string tiers;
  for (Tier tier : plan_->tiers) tiers += name_of(tier).front();
  // Weights that differ would mix into nonsense: compare some values of the model.
  std::vector<std::uint32_t> values(64);
  std::string weights;
  for (const TensorSpec& t :
       {model_->spec().embedding, model_->spec().blocks.back().matrices.back(),
        model_->spec().head.vectors.front()}) {
    const auto count = std::min<std::int64_t>(t.elements(), std::ssize(values));
    source_->read(t, t.elements() - count, count, DType::kFloat32, values.data());
    std::uint64_t hash = 0;
    for (std::uint32_t v : values) hash = mix64(hash ^ v);
    weights += fmt::format("{:016x} ", hash);
  }
  const SampleRow s = GenerationOptions::from(config_).sampling;
  return {{"the model's shape", fmt::format("{} {} {} {} {} {} {}", c.family, c.hidden, c.layers,
                                            c.heads, c.ffn, c.vocabulary, c.norm_epsilon)},
          {"the model's weights", weights},
          {"the tokenizer", fmt::format("{} tokens", tokenizer_->size())},
          {"--compute-dtype", std::string(name_of(plan_->compute_dtype))},
          {"the tiers of the blocks", tiers},
          {"--batch-size", fmt::format("{}", fmt::join(config_.batch_size, ","))},
          {"the plan",
           fmt::format("{} rows a pass, {} of logits, {} KV pages, {} slots", plan_->pass_tokens,
                       plan_->head_rows, plan_->kv_pages, plan_->slot_count)},
          {"--score, --benchmark, --logprobs",
           fmt::format("{} {} {}", config_.score, config_.benchmark, config_.logprobs)},
          {"the generation options",
           fmt::format("{} {} {} {} {} {} {} {}", s.temperature, s.top_k, s.top_p,
                       s.repetition_penalty, s.seed, config_.max_new_tokens, config_.ignore_eos,
                       fmt::join(config_.stop, "|"))}};
}

GenerationOptions Engine::generation_options() const {
  GenerationOptions options = GenerationOptions::from(config_);
  options.vocabulary = model_->config().vocabulary;
  if (!config_.ignore_eos) options.eos_ids = model_->config().eos_ids;
  return options;
}

Engine::Outcome Engine::generate(const Job& job) {
  WorkExchange exchange(*world_, job.source, job.sink);
  Generator generator(*runner_, exchange, *tokenizer_, *plan_, job.lanes, world_->rank(),
                      job.options, job.stop_signal);
  runner_->take_fetch_stats();
  Outcome outcome;
  outcome.signal = generator.run();
  outcome.failed_prompts = generator.failed_prompts();
  outcome.stats = generator.stats();
  outcome.fetched = runner_->take_fetch_stats();
  return outcome;
}

std::string Engine::nvme_method() const {
  return weights_->nvme_store() != nullptr ? weights_->nvme_store()->method() : std::string();
}

}  // namespace zi
