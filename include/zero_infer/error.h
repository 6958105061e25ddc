#pragma once

#include <stdexcept>
#include <string>

namespace zi {

/// Every failure that zero-infer reports itself. The message says what went wrong, with which
/// values, and what to do about it; `main` prints it after `[rank 3/8 host]`.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A flag, a YAML key or a combination of them that cannot work, or a plan that does not fit.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// Memory that is not there: a plan that does not fit, or an allocation that was refused.
class MemoryError : public ConfigError {
 public:
  using ConfigError::ConfigError;
};

/// A model directory, tensor file, tokenizer or config.json that is missing, damaged or foreign.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

/// A prompt or a prompt file that cannot be used.
class PromptError : public Error {
 public:
  using Error::Error;
};

/// A system call that failed: the message holds the path, the offset and strerror.
class IoError : public Error {
 public:
  using Error::Error;
};

/// A CUDA or cuBLAS call that failed.
class CudaError : public Error {
 public:
  using Error::Error;
};

/// An MPI or NCCL call that failed, or a peer that is gone.
class CommError : public Error {
 public:
  using Error::Error;
};

/// Another rank has already reported the failure that ends this job: there is nothing more to
/// print.
class PeerError : public Error {
 public:
  using Error::Error;
};

}  // namespace zi
