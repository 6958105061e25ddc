// Writes a synthetic BLOOM checkpoint of any size: for tests of loading, memory and speed.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>

#include "synthetic_checkpoint.h"

int main(int argc, char** argv) {
  CLI::App app("Writes a synthetic BLOOM checkpoint with seeded random weights");
  zi::test::SyntheticOptions options;
  std::string config, out, dtype = "bf16", tokenizer;
  app.add_option("--config", config, "config.json with the model's shape")->required();
  app.add_option("--out", out, "directory to write (made where missing)")->required();
  app.add_option("--dtype", dtype, "bf16, fp16 or fp32")->capture_default_str();
  CLI::Option* shards = app.add_option("--shards", options.shards, "number of files, with an index")
                            ->capture_default_str();
  app.add_option("--prefix", options.prefix, "in front of every tensor's name; \"\" for none")
      ->capture_default_str();
  app.add_flag("--single", options.single, "one model.safetensors without an index")
      ->excludes(shards);
  app.add_option("--seed", options.seed, "seed of the weights")->capture_default_str();
  app.add_option("--tokenizer", tokenizer, "a tokenizer.json to copy along");
  CLI11_PARSE(app, argc, argv);
  try {
    options.dtype = zi::parse_dtype(dtype);
    if (!tokenizer.empty()) options.tokenizer = tokenizer;
    zi::test::write_synthetic_checkpoint(config, out, options);
  } catch (const std::exception& error) {
    fmt::print(stderr, "make_checkpoint: {}\n", error.what());
    return 1;
  }
  fmt::print("wrote {}\n", out);
  return 0;
}
