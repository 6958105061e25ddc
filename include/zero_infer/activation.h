#pragma once

#include <string_view>

namespace zi {

/// Between the products of an MLP.
enum class Activation {
  kGelu,      // x * Phi(x), by erf
  kGeluTanh,  // its approximation by tanh
  kRelu,
  kSilu,  // x / (1 + e^-x)
};

constexpr std::string_view name_of(Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      return "gelu";
    case Activation::kGeluTanh:
      return "gelu_tanh";
    case Activation::kRelu:
      return "relu";
    case Activation::kSilu:
      return "silu";
  }
  return "";
}

}  // namespace zi
