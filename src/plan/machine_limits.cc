#include "plan/machine_limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::ordered_json;

ordered_json storage_json(const std::vector<StorageRate>& rates) {
  ordered_json list = ordered_json::array();
  for (const StorageRate& r : rates) {
    list.push_back({{"depth", r.depth}, {"bytes", r.bytes}, {"gb_s", r.rate / kGiga}});
  }
  return list;
}

/// A rate as the file has it; one that is not a finite number of at least 0 is refused.
double rate_of(const ordered_json& object, const char* key, double scale) {
  const double value = object.at(key).get<double>() * scale;
  if (!std::isfinite(value) || value < 0) throw ConfigError(fmt::format("`{}` is not a rate", key));
  return value;
}

ordered_json sized_json(const std::vector<SizedRate>& rates) {
  ordered_json list = ordered_json::array();
  for (const SizedRate& r : rates) list.push_back({{"bytes", r.bytes}, {"gb_s", r.rate / kGiga}});
  return list;
}

std::vector<StorageRate> storage_of(const ordered_json& list) {
  std::vector<StorageRate> rates;
  for (const ordered_json& r : list) {
    rates.push_back(
        {r.at("depth").get<int>(), r.at("bytes").get<std::size_t>(), rate_of(r, "gb_s", kGiga)});
  }
  return rates;
}

std::size_t bytes_of(const ordered_json& object, const char* key) {
  if (!object.at(key).is_number_unsigned()) {
    throw ConfigError(fmt::format("`{}` is not a number of bytes", key));
  }
  return object.at(key).get<std::size_t>();
}

/// A count of ranks.
int ranks_of(const ordered_json& object, const char* key) {
  constexpr std::int64_t kMost = 1'000'000;
  const ordered_json& value = object.at(key);
  if (!value.is_number_integer() || value < 1 || value > kMost) {
    throw ConfigError(fmt::format("`{}` is not a number of ranks", key));
  }
  return value.get<int>();
}

std::vector<SizedRate> sized_of(const ordered_json& list) {
  std::vector<SizedRate> rates;
  for (const ordered_json& r : list) {
    rates.push_back({bytes_of(r, "bytes"), rate_of(r, "gb_s", kGiga)});
  }
  return rates;
}

void check_sized(const std::vector<SizedRate>& rates, const char* key) {
  std::size_t before = 0;
  for (const SizedRate& r : rates) {
    if (r.bytes <= before || r.rate <= 0) {
      throw ConfigError(fmt::format("`{}` must be in order of bytes, with rates above 0", key));
    }
    before = r.bytes;
  }
}

/// What a plan needs, and what it relies on.
void check(const MachineLimits& limits) {
  if (limits.backend != "cpu" && limits.backend != "cuda") {
    throw ConfigError("`backend` is neither cpu nor cuda");
  }
  if (limits.world % limits.ranks_per_host != 0) {
    throw ConfigError("`world` is not a multiple of `ranks_per_host`");
  }
  if (limits.device_memory <= 0) throw ConfigError("`device_memory_gb_s` is 0");
  if (limits.products.empty()) throw ConfigError("`products` is empty");
  for (std::size_t i = 0; i < limits.products.size(); ++i) {
    const ProductRate& p = limits.products[i];
    const bool ascends = p.rows > (i == 0 ? 0 : limits.products[i - 1].rows);
    if (!ascends || p.weights_rate <= 0 || p.operations_rate <= 0) {
      throw ConfigError("`products` must be in order of rows, with rates above 0");
    }
  }
  check_sized(limits.gather, "gather");
  check_sized(limits.network, "network");
}

MachineLimits parse(const std::string& text) {
  const ordered_json object = ordered_json::parse(text);
  if (object.at("name") != "limits") throw ConfigError("its `name` is not `limits`");
  MachineLimits limits;
  limits.source = object.at("source").get<std::string>();
  limits.backend = object.at("backend").get<std::string>();
  limits.device = object.at("device").get<std::string>();
  limits.world = ranks_of(object, "world");
  limits.ranks_per_host = ranks_of(object, "ranks_per_host");
  limits.device_bytes = bytes_of(object, "device_bytes");
  limits.host_bytes = bytes_of(object, "host_bytes");
  limits.copy_alone = rate_of(object, "copy_alone_gb_s", kGiga);
  limits.copy_together = rate_of(object, "copy_together_gb_s", kGiga);
  limits.gather = sized_of(object.at("gather"));
  limits.network = sized_of(object.value("network", ordered_json::array()));
  limits.device_memory = rate_of(object, "device_memory_gb_s", kGiga);
  limits.host_memory = rate_of(object, "host_memory_gb_s", kGiga);
  limits.storage_path = object.at("storage_path").get<std::string>();
  limits.storage_method = object.value("storage_method", "");
  limits.reads = storage_of(object.at("reads"));
  limits.writes = storage_of(object.at("writes"));
  for (const ordered_json& r : object.at("products")) {
    limits.products.push_back({r.at("rows").get<std::int64_t>(), rate_of(r, "weights_gb_s", kGiga),
                               rate_of(r, "tflop_s", kTera)});
  }
  limits.seconds = object.at("seconds").get<double>();
  check(limits);
  return limits;
}

/// Between two sizes by interpolation over the logarithm; 0 where nothing is known.
double rate_at(const std::vector<SizedRate>& rates, std::size_t gathered_bytes) {
  if (rates.empty()) return 0;
  const auto above = std::ranges::find_if(
      rates, [gathered_bytes](const SizedRate& r) { return r.bytes >= gathered_bytes; });
  if (above == rates.begin()) return above->rate;
  if (above == rates.end()) return rates.back().rate;
  const SizedRate& below = *(above - 1);
  const auto log = [](std::size_t bytes) { return std::log(static_cast<double>(bytes)); };
  const double share =
      (log(gathered_bytes) - log(below.bytes)) / (log(above->bytes) - log(below.bytes));
  return below.rate + share * (above->rate - below.rate);
}

}  // namespace

double MachineLimits::best_read() const {
  double best = 0;
  for (const StorageRate& r : reads) best = std::max(best, r.rate);
  return best;
}

double MachineLimits::gather_rate(std::size_t gathered_bytes) const {
  return rate_at(gather, gathered_bytes);
}

double MachineLimits::network_rate(std::size_t gathered_bytes) const {
  return rate_at(network, gathered_bytes);
}

std::string MachineLimits::to_json() const {
  ordered_json rows = ordered_json::array();
  for (const ProductRate& r : products) {
    rows.push_back({{"rows", r.rows},
                    {"weights_gb_s", r.weights_rate / kGiga},
                    {"tflop_s", r.operations_rate / kTera}});
  }
  const ordered_json object = {{"name", "limits"},
                               {"source", source},
                               {"backend", backend},
                               {"device", device},
                               {"world", world},
                               {"ranks_per_host", ranks_per_host},
                               {"device_bytes", device_bytes},
                               {"host_bytes", host_bytes},
                               {"copy_alone_gb_s", copy_alone / kGiga},
                               {"copy_together_gb_s", copy_together / kGiga},
                               {"gather", sized_json(gather)},
                               {"network", sized_json(network)},
                               {"device_memory_gb_s", device_memory / kGiga},
                               {"host_memory_gb_s", host_memory / kGiga},
                               {"storage_path", storage_path},
                               {"storage_method", storage_method},
                               {"reads", storage_json(reads)},
                               {"writes", storage_json(writes)},
                               {"products", rows},
                               {"seconds", seconds}};
  return object.dump();
}

MachineLimits MachineLimits::from_json(const std::string& text, const std::string& where) {
  try {
    return parse(text);
  } catch (const ordered_json::exception& error) {
    throw ConfigError(fmt::format("{} holds no limits as `zero-infer limits` writes them: {}",
                                  where, error.what()));
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{} holds no limits as `zero-infer limits` writes them: {}",
                                  where, error.what()));
  }
}

}  // namespace zi
