#include "engine/agreement.h"

#include <fmt/format.h>

#include "base/printable_text.h"
#include "text/wire.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr char kValues = 'A';  // of the message

}  // namespace

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

void check_agreement(RankGroup& ranks, const std::vector<Agreed>& mine) {
  WireWriter values(kValues);  // exact: a stop text may hold any bytes
  for (const Agreed& a : mine) values.put(a.value);
  const std::string theirs = ranks.broadcast(values.take(), 0);
  const std::string their_host = ranks.broadcast(ranks.host(), 0);
  ranks.all_or_none([&] {
    WireReader reader(kValues, theirs);
    for (const Agreed& a : mine) {
      const std::string there = reader.text();
      if (there == a.value) continue;
      throw ConfigError(fmt::format(
          "{} must be the same on every rank: rank 0 on {} has {}, rank {} on {} has {}; give all "
          "ranks "
          "the same flags, config file and checkpoint",
          a.name, their_host, in_quotes(there), ranks.rank(), ranks.host(), in_quotes(a.value)));
    }
    reader.finish();
  });
}

}  // namespace zi
