#include "engine/agreement.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "zero_infer/error.h"

namespace zi {

std::vector<Agreed> model_agreement(const OpenModel& open, const Tokenizer& tokenizer) {
  std::vector<Agreed> agreed;
  for (const ConfigValue& v : open.model->config().values()) {
    agreed.push_back({fmt::format("`{}` of the model's config", v.key), v.value});
  }
  agreed.push_back(
      {"the model's weights", fmt::format("samples {:016x}, {}", open.source->content_identity(),
                                          name_of(open.stored_dtype))});
  agreed.push_back({"the tokenizer", fmt::format("{} tokens, files {:016x}", tokenizer.size(),
                                                 tokenizer.fingerprint())});
  return agreed;
}

void check_agreement(World& world, const std::vector<Agreed>& mine) {
  nlohmann::json values = nlohmann::json::array();
  for (const Agreed& a : mine) values.push_back(a.value);
  // A stop text may hold any bytes.
  const std::string ours = values.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const std::string theirs = world.broadcast(ours, 0);
  world.all_or_none([&] {
    if (ours == theirs) return;
    const auto here = nlohmann::json::parse(ours);
    const auto there = nlohmann::json::parse(theirs);
    std::size_t i = 0;
    while (here.at(i) == there.at(i)) ++i;
    throw ConfigError(fmt::format(
        "{} must be the same on every rank: rank 0 has `{}`, rank {} on {} has `{}`; give all "
        "ranks the same flags, config file and checkpoint",
        mine[i].name, there.at(i).get<std::string>(), world.rank(), world.host(),
        here.at(i).get<std::string>()));
  });
}

}  // namespace zi
