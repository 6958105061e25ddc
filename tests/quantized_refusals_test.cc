// Quantized matrices that are damaged, incomplete or not understood.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "packing/unpack_rows.h"
#include "quantized_rows_fixture.h"

namespace zi {
namespace {

using test::kind_named;
using test::kName;
using test::kPart;
using test::kStem;
using test::quantized_example;
using test::QuantizedExample;
using test::QuantizedKind;
using test::set;
using test::TestTensors;
using ::testing::AllOf;
using ::testing::HasSubstr;

struct QuantizedRefusals : test::QuantizedRowsFixture {};

TEST_F(QuantizedRefusals, APartThatIsMissingIsNamed) {
  const TensorSpec matrix{kName, {32, 64}};
  for (const auto& [name, part, what] :
       {std::tuple{"gptq g32", "scales", "and no scales"},
        std::tuple{"gptq g64 sym", "qzeros", "and no zero points"},
        std::tuple{"awq g32", "scales", "and no scales"},
        std::tuple{"packed g32", "weight_scale", "and no scales"},
        std::tuple{"packed g128 asym", "weight_zero_point", "and no zero points"},
        std::tuple{"int8 rows asym", "weight_zero_point", "and no zero points"},
        std::tuple{"fp8 blocks", "weight_scale_inv", "and no scales"}}) {
    const QuantizedKind kind = kind_named(name);
    TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
    ASSERT_EQ(tensors.erase(kPart + part), 1u) << name;
    EXPECT_THAT(refusal(kind, tensors, matrix), AllOf(HasSubstr(kName), HasSubstr(what))) << name;
  }
}

TEST_F(QuantizedRefusals, PartsOfAnotherTypeOrShapeAreNamed) {
  const TensorSpec matrix{kName, {32, 64}};
  const auto with = [&](const char* name, const std::string& part,
                        const std::function<void(test::TestTensor&)>& change) {
    const QuantizedKind kind = kind_named(name);
    TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
    change(tensors.at(kPart + part));
    return refusal(kind, tensors, matrix);
  };
  const auto type = [](const char* dtype) {
    return [dtype](test::TestTensor& t) { t.dtype = dtype; };
  };
  EXPECT_THAT(with("gptq g32", "qweight", type("F32")), HasSubstr("qweight` is stored as `F32`"));
  EXPECT_THAT(with("gptq g32", "scales", type("I16")), HasSubstr("holds scales as `I16`"));
  EXPECT_THAT(with("fp8 blocks", "weight", type("F8_E5M2")),
              HasSubstr("weight` is stored as `F8_E5M2`"));
  EXPECT_THAT(with("awq g32", "qzeros", type("U32")), HasSubstr("qzeros` is stored as `U32`"));
  const auto shape = [](std::vector<std::int64_t> to) {
    return [to](test::TestTensor& t) { t.shape = to; };
  };
  EXPECT_THAT(with("gptq g32", "qweight", shape({32, 8})),
              AllOf(HasSubstr("qweight` has the shape [32, 8]"), HasSubstr("it is [8, 32]")));
  EXPECT_THAT(with("gptq g32", "scales", shape({1, 64})),
              AllOf(HasSubstr("scales` has the shape [1, 64]"), HasSubstr("groups of 32"),
                    HasSubstr("it is [2, 32]")));
  EXPECT_THAT(with("packed 8 bits g64", "weight_scale", shape({1, 32})),
              HasSubstr("it is [32, 1]"));
  EXPECT_THAT(with("packed g32", "weight_shape",
                   [](test::TestTensor& t) {
                     const std::int64_t other[] = {64, 32};
                     std::memcpy(t.bytes.data(), other, sizeof other);
                   }),
              HasSubstr("says that the matrix is [64, 32]"));
  // Words hold eight codes.
  const QuantizedKind gptq = kind_named("gptq g32");
  EXPECT_THAT(refusal(gptq, quantized_example(gptq, kStem, 32, 64, 1).tensors, {kName, {32, 60}}),
              HasSubstr("cannot hold a matrix (32, 60)"));
}

TEST_F(QuantizedRefusals, ColumnsInAnotherOrderAreRefused) {
  const TensorSpec matrix{kName, {32, 64}};
  const QuantizedKind kind = kind_named("gptq g32");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  set<std::int32_t>(tensors, kPart + "g_idx", 40, 0);
  EXPECT_THAT(
      refusal(kind, tensors, matrix),
      AllOf(HasSubstr("g_idx` puts column 40 into group 0 and not 1"), HasSubstr("desc_act")));
}

TEST_F(QuantizedRefusals, ScalesZeroPointsAndCodesThatAreNoneAreNamed) {
  const TensorSpec matrix{kName, {32, 64}};
  const auto with = [&](const char* name, const std::function<void(TestTensors&)>& change) {
    const QuantizedKind kind = kind_named(name);
    TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
    change(tensors);
    return refusal(kind, tensors, matrix);
  };
  EXPECT_THAT(with("gptq g32",  // group 1 of row 5
                   [](TestTensors& t) { set<std::uint16_t>(t, kPart + "scales", 37, 0x7e00); }),
              HasSubstr("scales` has the scale nan of row 5, group 1"));
  EXPECT_THAT(
      with("awq g32", [](TestTensors& t) { set<std::uint16_t>(t, kPart + "scales", 31, 0x7c00); }),
      HasSubstr("scales` has the scale inf of row 31, group 0"));
  EXPECT_THAT(with("fp8 one scale",
                   [](TestTensors& t) {
                     set<float>(t, kPart + "weight_scale", 0,
                                -std::numeric_limits<float>::infinity());
                   }),
              HasSubstr("weight_scale` has the scale -inf of row 0, group 0"));
  EXPECT_THAT(with("fp8 blocks", [](TestTensors& t) { t.at(kPart + "weight").bytes[70] = '\x7f'; }),
              AllOf(HasSubstr("model.safetensors: tensor `" + kPart + "weight` has the code 0x7f"),
                    HasSubstr("of row 1, column 6,")));
  EXPECT_THAT(with("gptq g64 sym",  // row 9
                   [](TestTensors& t) { set<std::uint32_t>(t, kPart + "qzeros", 1, 0x77777767); }),
              AllOf(HasSubstr("qzeros` has the zero point 7 of row 9, group 0"), HasSubstr("sym")));
}

TEST_F(QuantizedRefusals, AScaleWithWhichLargeCodesAreNoFloatsIsNamed) {
  // Just above and below the largest float32 over the largest code.
  for (const auto& [name, part, most] : {std::tuple{"fp8 one scale", "weight_scale", 448.0f},
                                         std::tuple{"gptq 8 bits g16", "scales", 255.0f},
                                         std::tuple{"packed rows", "weight_scale", 8.0f},
                                         std::tuple{"int8 one scale", "weight_scale", 128.0f}}) {
    const QuantizedKind kind = kind_named(name);
    TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
    const float limit = std::numeric_limits<float>::max() / most;
    set<float>(tensors, kPart + part, 0, limit * 1.001f);
    EXPECT_THAT(refusal(kind, tensors, {kName, {32, 64}}),
                AllOf(HasSubstr(kPart + part + "` has the scale "),
                      HasSubstr("of row 0, group 0, with which large codes are no float32")))
        << name;
    set<float>(tensors, kPart + part, 0, limit * 0.999f);
    EXPECT_EQ(refusal(kind, tensors, {kName, {32, 64}}), "nothing was refused") << name;
  }
}

/// Zeroes the scales of rows [first, end).
void clear_scales(const QuantizedKind& kind, TestTensors& tensors, std::size_t first,
                  std::size_t end) {
  const bool turned = kind.config.at("quant_method") == "gptq";
  const std::string name = kPart + (turned ? "scales" : kind.scale_name);
  const std::size_t groups = static_cast<std::size_t>(tensors.at(name).shape[turned ? 0 : 1]);
  const std::size_t rows = static_cast<std::size_t>(tensors.at(name).shape[turned ? 1 : 0]);
  for (std::size_t row = first; row < end; ++row) {
    for (std::size_t g = 0; g < groups; ++g) {
      set<std::uint16_t>(tensors, name, turned ? g * rows + row : row * groups + g, 0);
    }
  }
}

TEST_F(QuantizedRefusals, ScalesOfZeroAreFineInAGroupOrAFewRowsAndAHoleInMany) {
  for (const char* name : {"packed g32", "gptq g32", "int8 rows", "float8 rows"}) {
    SCOPED_TRACE(name);
    const QuantizedKind kind = kind_named(name);
    const TensorSpec matrix{kName, {40, 64}};
    const QuantizedExample example = quantized_example(kind, kStem, 40, 64, 1);
    TestTensors tensors = example.tensors;
    clear_scales(kind, tensors, 3, 18);
    clear_scales(kind, tensors, 19, 34);
    const auto source = open(kind, tensors);
    const auto packed = rows_of(*source, matrix);
    std::vector<float> values(example.values.size());
    unpack_rows(packed.data(), 40, 64, source->packed_format(kName).value(), DType::kFloat32,
                values.data());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t row = i / 64;
      const bool dead = (row >= 3 && row < 18) || (row >= 19 && row < 34);
      EXPECT_EQ(values[i], dead ? 0 : example.values[i]) << i;
    }
    clear_scales(kind, tensors, 18, 19);
    EXPECT_THAT(refusal(kind, tensors, matrix),
                HasSubstr("has only scales of 0 for rows 3 to 18, whose codes are not"));
    // A matrix of fewer rows.
    tensors = quantized_example(kind, kStem, 8, 64, 1).tensors;
    clear_scales(kind, tensors, 0, 7);
    EXPECT_EQ(refusal(kind, tensors, {kName, {8, 64}}), "nothing was refused");
    clear_scales(kind, tensors, 0, 8);
    EXPECT_THAT(refusal(kind, tensors, {kName, {8, 64}}), HasSubstr("for rows 0 to 7,"));
  }
  // One group of a row whose others have scales.
  const QuantizedKind kind = kind_named("packed g32");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  for (std::size_t row = 0; row < 32; ++row) {
    set<std::uint16_t>(tensors, kPart + "weight_scale", 2 * row + 1, 0);
  }
  EXPECT_EQ(refusal(kind, tensors, {kName, {32, 64}}), "nothing was refused");
}

TEST_F(QuantizedRefusals, AScaleOfZeroIsFineWhereAllCodesAreZero) {
  for (const char* name : {"packed g32", "int8 rows asym", "float8 rows", "packed g128 asym"}) {
    const QuantizedKind kind = kind_named(name);
    TestTensors tensors = quantized_example(kind, kStem, 1, 16, 1).tensors;
    for (auto& [part, tensor] : tensors) {
      const bool packed = name[0] == 'p';
      if (part.ends_with("scale")) tensor.bytes.assign(tensor.bytes.size(), '\0');
      if (part.ends_with(".weight") || part.ends_with("packed") || part.ends_with("point")) {
        tensor.bytes.assign(tensor.bytes.size(), packed ? '\x88' : '\0');
      }
    }
    EXPECT_EQ(refusal(kind, tensors, {kName, {1, 16}}), "nothing was refused") << name;
  }
}

TEST_F(QuantizedRefusals, AZeroPointOfGptqThatIsStoredAsLessThanNoneIsRefused) {
  const TensorSpec matrix{kName, {8, 16}};
  for (const auto& [name, read] :
       {std::pair{"gptq g32", "0 or as 16"}, std::pair{"gptq 8 bits g16", "0 or as 256"}}) {
    const QuantizedKind kind = kind_named(name);
    TestTensors tensors = quantized_example(kind, kStem, 8, 16, 1).tensors;
    tensors.at(kPart + "qzeros").bytes[3] = '\xff';
    EXPECT_THAT(refusal(kind, tensors, matrix),
                AllOf(HasSubstr("qzeros` has a zero point of row "),
                      HasSubstr(std::string("stored as -1, which programs read as ") + read)));
    // The later format stores it as it is.
    QuantizedKind v2 = kind;
    v2.config["checkpoint_format"] = "gptq_v2";
    EXPECT_EQ(refusal(v2, tensors, matrix), "nothing was refused");
  }
}

TEST_F(QuantizedRefusals, ZeroPointsThatAreNotPackedComeWithAdvice) {
  const QuantizedKind kind = kind_named("packed g128 asym");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  tensors[kPart + "weight_zero_point"] = {"I8", {32, 1}, std::string(32, '\0')};
  EXPECT_THAT(refusal(kind, tensors, {kName, {32, 64}}),
              AllOf(HasSubstr("weight_zero_point` is stored as `I8`"),
                    HasSubstr("save the checkpoint again")));
}

TEST_F(QuantizedRefusals, AnOrderThatConfigAsksForIsThere) {
  const TensorSpec matrix{kName, {32, 64}};
  QuantizedKind gptq = kind_named("gptq g32"), packed = kind_named("packed g32");
  gptq.config["desc_act"] = true;
  packed.config["config_groups"]["group_0"]["weights"]["actorder"] = "group";
  TestTensors tensors = quantized_example(gptq, kStem, 32, 64, 1).tensors;
  EXPECT_EQ(refusal(gptq, tensors, matrix), "nothing was refused");
  ASSERT_EQ(tensors.erase(kPart + "g_idx"), 1u);
  EXPECT_THAT(refusal(gptq, tensors, matrix), HasSubstr("and no order of its columns"));
  // Whole rows have none.
  gptq.config["group_size"] = -1;
  tensors = quantized_example(gptq, kStem, 32, 64, 1).tensors;
  tensors.erase(kPart + "g_idx");
  EXPECT_EQ(refusal(gptq, tensors, matrix), "nothing was refused");
  EXPECT_THAT(refusal(packed, quantized_example(packed, kStem, 32, 64, 1).tensors, matrix),
              HasSubstr("and no order of its columns"));
}

TEST_F(QuantizedRefusals, APartThatIsOfNoQuantizedMatrixIsRefused) {
  const TensorSpec matrix{kName, {32, 64}};
  const test::TestTensor part{"F16", {64}, std::string(128, '\0')};
  const test::TestTensor elements{"BF16", {32, 64}, std::string(2 * 32 * 64, '\0')};
  const std::string other = "model.layers.1.mlp.down_proj";
  for (const char* name : {"gptq g32", "awq g32", "packed g32", "int8 rows", "float8 rows"}) {
    const QuantizedKind kind = kind_named(name);
    for (const std::string end :
         {".qzeros", ".scales", ".g_idx", ".weight_scale", ".weight_scale_inv",
          ".weight_zero_point", ".weight_g_idx", ".weight_shape", ".weight_scale_2",
          ".weight_global_scale", ".pre_quant_scale"}) {
      SCOPED_TRACE(name + end);
      TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
      tensors[other + end] = part;
      EXPECT_THAT(refusal(kind, tensors, matrix),
                  AllOf(HasSubstr("model.safetensors: tensor `" + other + end + "` "),
                        HasSubstr(name == std::string("awq g32") && end == ".scales"
                                      ? "scaled activations are not supported"
                                      : "without codes")));
      tensors[other + ".weight"] = elements;
      EXPECT_THAT(refusal(kind, tensors, matrix),
                  AllOf(HasSubstr("tensor `" + other + end + "` "),
                        HasSubstr("but `" + other + ".weight` is stored as `BF16`")));
    }
    TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
    tensors[kPart + "weight_global_scale"] = part;
    EXPECT_THAT(refusal(kind, tensors, matrix), HasSubstr("does not know it there")) << name;
  }
  // Without a config, too.
  test::write_tensors(directory.path() / "model.safetensors",
                      {{other + ".weight", elements}, {other + ".weight_scale", part}});
  EXPECT_THAT([&] { open_checkpoint(directory.path(), "model."); },
              ::testing::ThrowsMessage<CheckpointError>(HasSubstr("is stored as `BF16`")));
}

TEST_F(QuantizedRefusals, VectorsThatAreQuantizedAreRefused) {
  const QuantizedKind kind = kind_named("fp8 one scale");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  tensors["model.layers.0.input_layernorm.weight"] = {"F8_E4M3", {64}, std::string(64, '8')};
  tensors["model.layers.0.input_layernorm.weight_scale"] = {"F32", {}, std::string(4, '\0')};
  const auto source = open(kind, tensors);
  std::vector<float> values(64);
  EXPECT_THAT(
      [&] {
        source->read({"layers.0.input_layernorm.weight", {64}}, 0, 64, DType::kFloat32,
                     values.data());
      },
      ::testing::ThrowsMessage<CheckpointError>(
          AllOf(HasSubstr("model.safetensors: "),
                HasSubstr("norms, biases and other vectors that are quantized"))));
}

/// Each matrix is of the file of its codes.
TEST_F(QuantizedRefusals, TheFileThatIsMeantIsNamed) {
  const QuantizedKind kind = kind_named("int8 rows");
  nlohmann::json map;
  for (const int layer : {0, 1}) {
    const std::string file = fmt::format("model-{}.safetensors", layer);
    const auto example =
        quantized_example(kind, fmt::format("model.layers.{}.mlp.down_proj", layer), 32, 64, 1);
    test::write_tensors(directory.path() / file, example.tensors);
    for (const auto& [name, tensor] : example.tensors) map[name] = file;
  }
  test::write_text(directory.path() / "model.safetensors.index.json",
                   nlohmann::json{{"weight_map", map}}.dump());
  const auto source =
      open_checkpoint(directory.path(), "model.", test::quantization_of(kind.config));
  for (const int layer : {0, 1}) {
    const TensorSpec matrix{fmt::format("layers.{}.mlp.down_proj.weight", layer), {32, 64}};
    const auto named = ::testing::ThrowsMessage<CheckpointError>(
        HasSubstr(fmt::format("model-{}.safetensors: ", layer)));
    EXPECT_THAT([&] { source->read_packed(matrix, 32, 1, nullptr); }, named);
    EXPECT_THAT([&] { source->read(matrix, 0, 1, DType::kFloat32, nullptr); }, named);
  }
}

TEST_F(QuantizedRefusals, WithoutAConfigThatSaysHowTheyAreRefusedByName) {
  const TensorSpec matrix{kName, {32, 64}};
  for (const char* name : {"gptq g32", "packed g32"}) {
    const QuantizedKind kind = kind_named(name);
    open(kind, quantized_example(kind, kStem, 32, 64, 1).tensors);
    const auto source = open_checkpoint(directory.path(), "model.");
    EXPECT_THAT([&] { source->stored_dtype(kName); },
                ::testing::ThrowsMessage<CheckpointError>(
                    AllOf(HasSubstr(kName), HasSubstr("does not say how"))))
        << name;
  }
  // Some programs say it in a file of their own.
  const QuantizedKind gptq = kind_named("gptq g32");
  open(gptq, quantized_example(gptq, kStem, 32, 64, 1).tensors);
  test::write_text(directory.path() / "quantize_config.json", gptq.config.dump());
  EXPECT_THAT([&] { open_checkpoint(directory.path(), "model.")->stored_dtype(kName); },
              ::testing::ThrowsMessage<CheckpointError>(
                  HasSubstr("copy what quantize_config.json holds into config.json")));
  const QuantizedKind fp8 = kind_named("fp8 blocks");
  open(fp8, quantized_example(fp8, kStem, 32, 64, 1).tensors);
  EXPECT_THAT([&] { open_checkpoint(directory.path(), "model.")->stored_dtype(kName); },
              ::testing::ThrowsMessage<CheckpointError>(HasSubstr("stored as `F8_E4M3`")));
}

TEST_F(QuantizedRefusals, AMatrixThatIsThereTwiceIsRefused) {
  const QuantizedKind kind = kind_named("gptq g32");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  tensors[kPart + "weight"] = {"BF16", {32, 64}, std::string(2 * 32 * 64, '\0')};
  EXPECT_THAT(refusal(kind, tensors, {kName, {32, 64}}), HasSubstr("is there twice"));
}

}  // namespace
}  // namespace zi
