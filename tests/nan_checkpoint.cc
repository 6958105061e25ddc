#include "nan_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>

namespace zi::test {
namespace {

using nlohmann::json;

std::string read(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace

void make_nan_checkpoint(const std::string& from, const std::string& to, std::int32_t token) {
  std::filesystem::copy(from, to, std::filesystem::copy_options::recursive);
  const std::string index_path = to + "/model.safetensors.index.json";
  json index = json::parse(read(index_path));
  std::string name, file;
  for (const auto& [tensor, in] : index.at("weight_map").items()) {
    if (tensor.ends_with("word_embeddings.weight")) name = tensor, file = in;
  }
  std::string bytes = read(to + "/" + file);
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  const json header = json::parse(bytes.substr(8, header_bytes));
  json tensor = header.at(name);
  if (tensor.at("dtype") != "BF16") throw std::runtime_error("the embedding is not in bfloat16");
  const std::size_t begin = 8 + header_bytes + tensor.at("data_offsets")[0].get<std::size_t>();
  const std::size_t size = tensor.at("data_offsets")[1].get<std::size_t>() -
                           tensor.at("data_offsets")[0].get<std::size_t>();

  const std::string head = bytes.substr(begin, size);
  tensor["data_offsets"] = {0, size};
  const std::string head_header = json{{"lm_head.weight", tensor}}.dump();
  const std::uint64_t head_header_bytes = head_header.size();
  write(to + "/model-head.safetensors",
        std::string(reinterpret_cast<const char*>(&head_header_bytes), 8) + head_header + head);
  index["weight_map"]["lm_head.weight"] = "model-head.safetensors";
  write(index_path, index.dump());

  const std::size_t row_bytes = 2 * tensor.at("shape")[1].get<std::size_t>();
  for (std::size_t i = 0; i < row_bytes; i += 2) {
    const std::uint16_t nan = 0x7fc0;  // in bfloat16
    std::memcpy(bytes.data() + begin + static_cast<std::size_t>(token) * row_bytes + i, &nan, 2);
  }
  write(to + "/" + file, bytes);

  json config = json::parse(read(to + "/config.json"));
  config["tie_word_embeddings"] = false;
  write(to + "/config.json", config.dump());
}

}  // namespace zi::test
