#include "engine/engine.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "base/printable_text.h"
#include "engine/needless_offload.h"
#include "engine/shard_space.h"
#include "engine/share_trial.h"
#include "engine/travel_trial.h"
#include "offload/shard_folder.h"
#include "text/encoded_prompts.h"
#include "zero_infer/backend.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// Reads of a rank in flight while it loads: a disk needs several, whatever the number of cores;
/// each takes about a MiB of memory.
constexpr int kFewestReads = 4;
constexpr int kMostReads = 16;

/// A line about tokens that the tokenizer knows and the model does not. Empty where there are none.
std::string tokens_without_rows(const Tokenizer& tokenizer, std::int64_t rows) {
  for (std::int64_t i = rows; i < tokenizer.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    if (tokenizer.token_text(id).empty()) continue;
    return fmt::format(
        "the tokenizer has ids up to {}, and the model has no embedding rows from {} on: a prompt "
        "with a token such as {} (id {}) is refused",
        tokenizer.size() - 1, rows, in_quotes(tokenizer.token_text(id)), id);
  }
  return {};
}

}  // namespace

Engine::Engine(World& world, Backend backend, RunConfig config)
    : Engine(world, std::make_shared<Backend>(std::move(backend)), std::move(config)) {}

Engine::Engine(World& world, std::shared_ptr<Backend> backend, RunConfig config,
               LoadObserver observer, const BeforeLoad& before_load)
    : world_(&world),
      backend_(std::move(backend)),
      config_(std::move(config)),
      observer_(std::move(observer)) {
  world.all_or_none([&] { open(); });
  std::vector<Agreed> mine;
  if (world.size() > 1) {
    // Before the plan: of two models it would say that one of them does not fit.
    world.all_or_none([&] { mine = model_agreement(open_, *tokenizer_); });
    check_agreement(world, mine);
  }
  make_memory_plan();
  world.all_or_none([&] { mine = agreement(); });
  check_agreement(world, mine);
  world.all_or_none([&] { check_agreement(partition(), plan_agreement()); });
  if (world.rank() == 0) {
    log_info(fmt::format("{}, {}; memory of a rank: {}", backend_->name, backend_->device->name(),
                         format_memory(static_cast<double>(plan_->rank_bytes()))));
    log_verbose("\n" + plan_->table());
    for (const std::string& note : plan_->notes) log_warning(note);
  }
  load(before_load);
}

void Engine::load(const BeforeLoad& before_load) {
  World& world = *world_;
  if (before_load) before_load(*this);
  std::filesystem::path written;
  const LoadOptions options{
      .rank = partition().rank(),
      .world = partition().size(),
      .threads = std::clamp(threads_per_rank(world.local_size()), kFewestReads, kMostReads),
      .show_progress = world.rank() == 0 && !config_.quiet,
      .observer = observer_,
      .model_name = open_.directory.filename().string(),
      .nvme_path = config_.nvme_offload_path,
      .others_write_alike = partition().size() < world.size(),
      .on_shard_file = [&](const std::filesystem::path& path) { written = path; }};
  check_shard_file(options);
  Buffer slots = allocate_slots();
  try {
    world.all_or_none([&] {
      weights_ = std::make_unique<ModelWeights>(*backend_->device, *backend_->ops, *open_.source,
                                                open_.model->spec(), *plan_, options);
    });
  } catch (const Error&) {
    if (!written.empty()) {
      log_warning(
          fmt::format("{} was written and is complete: it stays for the next start of this "
                      "job; remove it where there is to be none",
                      written.string()));
    }
    throw;
  }
  // Collective itself, as the allocation of slots is.
  if (plan_->replicas > 0) weights_->gather_replicas(*backend_->device, *backend_->communicator);
  make_runner(std::move(slots));
}

void Engine::check_shard_file(const LoadOptions& options) {
  std::optional<ShardFilePlan> file;
  world_->all_or_none([&] { file = plan_of_shard_file(*open_.source, *plan_, options); });
  check_shard_space(*world_, file ? &*file : nullptr, options);
}

Engine::~Engine() = default;

void Engine::begin_passes() { make_runner(allocate_slots()); }

/// Collective itself, so it is not run in all_or_none. In a world of one the memory is the
/// device's.
Buffer Engine::allocate_slots() {
  Buffer slots;
  if (partition().size() > 1 && plan_->slots > 0) {
    partition().all_or_none(
        [&] { slots = backend_->communicator->allocate(*backend_->device, plan_->slots); });
  }
  return slots;
}

std::int64_t Engine::measure_stay_rows(Buffer& slots) {
  if (plan_->travel != Travel::kAuto) return plan_->all_stay() ? plan_->pass_tokens : 0;
  const auto start = std::chrono::steady_clock::now();
  const std::vector<TravelTimes> times =
      measure_travel(partition(), *backend_, *open_.model, *plan_, *weights_, slots, peers_.get());
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  const std::int64_t rows = rows_to_stay(times, plan_->pass_tokens);
  if (world_->rank() == 0) log_info(describe(times, rows, plan_->replicated, took.count()));
  return rows;
}

void Engine::leave_weights_up_to(std::int64_t rows) {
  stay_rows_ = rows;
  runner_->leave_weights_up_to(rows);
}

void Engine::prepare_host_products(Buffer& slots) {
  if (host_shares_) return;
  host_shares_.emplace();
  // Of hosts that hold all weights each one has a plan of its own: what is collective, all do.
  world_->all_or_none([&] {
    if (!plan_->splits()) return;
    // The thread that enqueues passes keeps a core, and on the CPU backend those that run them.
    const int cores = threads_per_rank(world_->local_size());
    const int node = backend_->device->numa_node();
    const int threads = plan_->device_is_host ? cores / 2 : cores - 1;
    host_products_ = make_host_products(host_product_threads(threads, node), node);
  });
  std::vector<ShareTime> times;
  world_->all_or_none([&] {
    if (!plan_->splits() || plan_->cpu_share) return;
    times = measure_host_shares(*backend_, *host_products_, *open_.model, *plan_, *weights_,
                                partition().rank(), slots);
  });
  if (!plan_->splits()) return;
  if (plan_->cpu_share) {
    host_shares_.emplace(*plan_->cpu_share);
    return;
  }
  std::vector<HostShares::Point> points;
  for (const ShareTime& t : times) points.push_back({t.rows, t.share});
  host_shares_.emplace(std::move(points));
  if (world_->rank() == 0) log_info(describe(times));
}

void Engine::share_with_host(HostShares shares) {
  host_shares_ = std::move(shares);
  runner_->share_with_host(*host_shares_);
}

void Engine::make_runner(Buffer slots) {
  if (backend_->communicator) {
    peers_ = backend_->communicator->make_peer_exchange(*backend_->device,
                                                        plan_->product_exchange.bytes());
  }
  if (!stay_rows_) stay_rows_ = measure_stay_rows(slots);
  prepare_host_products(slots);
  world_->all_or_none([&] {
    const std::int64_t vocabulary = open_.model->config().vocabulary;
    runner_ = std::make_unique<PassRunner>(
        PassRunner::Parts{.device = *backend_->device,
                          .ops = *backend_->ops,
                          .communicator = backend_->communicator.get(),
                          .peers = peers_.get(),
                          .model = *open_.model,
                          .weights = *weights_,
                          .plan = *plan_,
                          .rank = partition().rank(),
                          .world = partition().size(),
                          .vocabulary = vocabulary,
                          .drawable = std::min<std::int64_t>(tokenizer_->size(), vocabulary),
                          .stay_rows = *stay_rows_,
                          .host_products = host_products_.get(),
                          .host_shares = *host_shares_},
        std::move(slots));
  });
}

void Engine::open() {
  if (config_.nvme_offload_path) check_shard_directory(*config_.nvme_offload_path);
  open_ = open_model(config_, MissingWeights::kRefuse,
                     backend_->device->is_host() ? ProductsOf::kCpu : ProductsOf::kAny);
  const bool first = world_->rank() == 0;
  for (const std::string& line : open_.warnings) {
    if (first) log_warning(line);
  }
  tokenizer_ = Tokenizer::in_directory(open_.directory);
  if (!tokenizer_ && config_.load_format == LoadFormat::kDummy) {
    if (first) {
      log_warning(fmt::format("{} has no tokenizer.json: each byte of a prompt is one token",
                              open_.directory.string()));
    }
    tokenizer_ = Tokenizer::bytes();
  }
  if (!tokenizer_) {
    throw CheckpointError(
        fmt::format("{} has no tokenizer.json; download it together with the weights",
                    open_.directory.string()));
  }
  const std::string beyond = tokens_without_rows(*tokenizer_, open_.model->config().vocabulary);
  if (first && !beyond.empty()) log_warning(beyond);
  if (first) log_conversions();
}

void Engine::log_conversions() const {
  const auto log = [this](const char* what, const TensorSpec& matrix, const WeightFormat& format) {
    if (open_.source->packed_format(matrix.name)) return;
    const DType stored = open_.source->stored_dtype(matrix.name);
    if (format == stored) return;
    log_info(fmt::format("the checkpoint's {} {} are {} {} while loading", name_of(stored), what,
                         format.packed() ? "packed in" : "converted to", describe(format)));
  };
  const ModelSpec& spec = open_.model->spec();
  log(open_.head_format == open_.block_format ? "weights" : "blocks",
      spec.blocks.front().matrices.front(), open_.block_format);
  if (open_.head_format != open_.block_format) {
    log("head and embedding", spec.head.matrices.front(), open_.head_format);
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
    mine = {backend_->device->memory().free_bytes, backend_->device->host_memory().free_bytes,
            world_->local_size()};
  });
  const std::vector<Memory> all = partition().all_gather(mine);
  PlanInput input;
  input.model = open_.model.get();
  input.block_format = open_.block_formats();
  input.head_format = open_.head_format;
  input.compute_dtype = open_.compute_dtype;
  input.world = partition().size();
  input.device_is_host = backend_->device->is_host();
  input.device_free = std::ranges::min_element(all, {}, &Memory::device_free)->device_free;
  input.host_free = std::ranges::min_element(all, {}, &Memory::host_free)->host_free;
  input.local_size =
      static_cast<int>(std::ranges::max_element(all, {}, &Memory::local_size)->local_size);
  world_->all_or_none([&] { plan_ = make_plan(input, config_); });
  if (partition().size() < world_->size()) equalize_kv_pages(input);
  world_->all_or_none([&] {
    if (auto note = needless_offload(*plan_, input, config_)) {
      plan_->notes.push_back(std::move(*note));
    }
  });
}

void Engine::equalize_kv_pages(const PlanInput& input) {
  const std::int64_t fewest = std::ranges::min(world_->all_gather(plan_->kv_pages));
  world_->all_or_none([&] {
    if (plan_->kv_pages == fewest) return;
    RunConfig config = config_;
    config.kv_budget = plan_->kv_page_bytes() * static_cast<std::size_t>(fewest);
    plan_ = make_plan(input, config);
  });
}

std::vector<Agreed> Engine::plan_agreement() const {
  std::string tiers, replicated;
  for (Tier tier : plan_->tiers) tiers += name_of(tier).front();
  for (bool is : plan_->replicated) replicated += is ? 'y' : 'n';
  return {{"the tiers of the blocks", tiers},
          {"which blocks are replicated", replicated},
          {"the plan", fmt::format("{} travel, {} rows a pass, {} of logits, {} KV pages, {} slots",
                                   name_of(plan_->travel), plan_->pass_tokens, plan_->head_rows,
                                   plan_->kv_pages, plan_->slot_count)}};
}

std::vector<Agreed> Engine::agreement() const {
  std::string stops;  // each with its length: `a|b` is not `a` and `b`
  for (const std::string& stop : config_.stop) stops += fmt::format("{}:{} ", stop.size(), stop);
  const GenerationSettings s = GenerationOptions::from(config_).settings;
  return {
      {"--compute-dtype", std::string(name_of(plan_->compute_dtype))},
      {"--weight-format", name_of(plan_->block_format)},
      {"--head-format", name_of(plan_->head_format)},
      {"--partition-within", std::string(name_of(config_.partition_within))},
      {"--travel", std::string(name_of(config_.travel))},
      {"--replicated-blocks",
       config_.replicated_blocks ? fmt::format("{}", *config_.replicated_blocks) : "auto"},
      {"--cpu-share", config_.cpu_share ? fmt::format("{}", *config_.cpu_share) : "auto"},
      {"--batch-size", fmt::format("{}", fmt::join(config_.batch_size, ","))},
      {"--score, --benchmark, --logprobs, --chat",
       fmt::format("{} {} {} {}", config_.score, config_.benchmark, config_.logprobs,
                   config_.chat)},
      {"--no-special-tokens", fmt::format("{}", config_.no_special_tokens)},
      {"--no-prefix-sharing", fmt::format("{}", config_.no_prefix_sharing)},
      {"the generation options",
       fmt::format("{} {} {} {} {} {} {} {}", s.temperature, s.top_k, s.top_p, s.repetition_penalty,
                   s.seed, config_.max_new_tokens, config_.ignore_eos, stops)}};
}

GenerationOptions Engine::generation_options() const {
  GenerationOptions options = GenerationOptions::from(config_);
  options.vocabulary = open_.model->config().vocabulary;
  options.max_positions = open_.model->config().max_positions;
  options.eos_ids = open_.model->config().eos_ids;
  return options;
}

Admission Engine::admission(GenerationOptions options) const {
  return {*tokenizer_, std::move(options), plan_->kv_pages * kKvPageTokens, plan_->kv_page_bytes()};
}

Engine::Outcome Engine::generate(const Job& job) {
  const bool shares = job.options.share_prefixes && !job.options.score;
  const Admission admission = this->admission(job.options);
  std::unique_ptr<PromptSource> encoded;
  if (job.source != nullptr && job.encode_ahead) {
    // As many as all ranks can take in one turn.
    encoded = encode_ahead(
        *job.source, [&](const Prompt& prompt) { return admission.encode(prompt); },
        static_cast<std::size_t>(job.lanes * world_->size()));
  }
  PromptSource* const source = encoded ? encoded.get() : job.source;
  WorkExchange exchange(*world_, partition(), source, job.sink, shares ? plan_->kv_pages : 0);
  Generator generator(*runner_, exchange, *tokenizer_, *plan_, job.lanes, world_->rank(),
                      job.options, job.stop_signal);
  runner_->take_fetch_stats();
  runner_->take_exchanged();
  if (job.on_pass) runner_->observe(job.on_pass);
  Outcome outcome;
  outcome.signal = generator.run();
  if (job.on_pass) runner_->observe({});
  outcome.failed = generator.failed_prompts();
  outcome.stats = generator.stats();
  outcome.fetched = runner_->take_fetch_stats();
  outcome.exchanged = runner_->take_exchanged();
  return outcome;
}

std::string Engine::model_name() const {
  std::string values;
  for (const Agreed& a : model_agreement(open_, *tokenizer_)) {
    values += fmt::format("{}:{} {}:{} ", a.name.size(), a.name, a.value.size(), a.value);
  }
  std::string name = fmt::format("{}@{:016x}", open_.directory.filename().string(),
                                 XXH3_64bits(values.data(), values.size()));
  const auto add = [&](const char* what, const WeightFormat& format, bool was_packed) {
    if (format.packed() && !was_packed) name += fmt::format(", {} {}", what, name_of(format));
  };
  add("blocks", open_.block_format, open_.packed_blocks.has_value());
  add("head", open_.head_format, open_.packed_head.has_value());
  return name;
}

std::string Engine::nvme_method() const {
  return weights_->nvme_store() != nullptr ? weights_->nvme_store()->method() : std::string();
}

}  // namespace zi
