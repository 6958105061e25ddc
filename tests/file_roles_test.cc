#include "base/file_roles.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/file_descriptor.h"
#include "base/file_identity.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

class FileRolesTest : public testing::Test {
 protected:
  FileRolesTest() : before_(fs::current_path()) {
    std::string name = testing::TempDir() + "zi-roles-XXXXXX";
    directory_ = ::mkdtemp(name.data());
    fs::create_directory(directory_ / "folder");
    std::ofstream(directory_ / "in.jsonl") << "text";
    fs::current_path(directory_);
  }
  ~FileRolesTest() override {
    fs::current_path(before_);
    fs::remove_all(directory_);
  }

  /// What is said of a job that reads `in` and writes `out` and `trace`.
  static std::string refusal(const fs::path& in, const fs::path& out, const fs::path& trace = "-") {
    try {
      FileRoles roles;
      roles.reads("--prompts " + in.string(), in);
      roles.writes("--output", out);
      roles.writes("--trace", trace);
      roles.check();
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  }

  const fs::path before_;
  fs::path directory_;
};

TEST_F(FileRolesTest, OneFileHasOneIdentityOnEveryWay) {
  fs::create_symlink("in.jsonl", "link");
  fs::create_symlink("link", "link-to-link");
  fs::create_hard_link("in.jsonl", "hard");
  fs::create_directory_symlink("folder", "other-folder");
  fs::create_symlink("folder/new", "to-new");
  const auto in = identity_of(fs::path("in.jsonl"));
  ASSERT_TRUE(in && in->exists());
  for (const fs::path& path :
       {directory_ / "in.jsonl", fs::path("./folder/../in.jsonl"), fs::path("link"),
        fs::path("link-to-link"), fs::path("hard"), fs::path("other-folder/../in.jsonl")}) {
    EXPECT_EQ(identity_of(path), in) << path;
  }
  const FileDescriptor open(::open("hard", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(identity_of(open.get()), in);
  const auto made = identity_of(fs::path("folder/new"));
  ASSERT_TRUE(made && !made->exists());
  for (const fs::path& path : {directory_ / "folder/new", fs::path("other-folder/new"),
                               fs::path("folder/./new"), fs::path("to-new")}) {
    EXPECT_EQ(identity_of(path), made) << path;
  }
  EXPECT_NE(identity_of(fs::path("new")), made) << "another folder";
  EXPECT_NE(identity_of(fs::path("folder/new2")), made);
}

TEST_F(FileRolesTest, WhatKeepsNoDataHasNoIdentity) {
  EXPECT_EQ(identity_of(fs::path("/dev/null")), std::nullopt);
  EXPECT_EQ(identity_of(fs::path("missing/new")), std::nullopt);
  EXPECT_EQ(identity_of(fs::path("")), std::nullopt);
  EXPECT_EQ(identity_of(-1), std::nullopt);
}

TEST_F(FileRolesTest, LinksThatLeadInACircleEnd) {
  fs::create_symlink("circle2", "circle");
  fs::create_symlink("circle", "circle2");
  identity_of(fs::path("circle"));
}

TEST_F(FileRolesTest, AnOutputMayNotBeAnInput) {
  fs::create_symlink("in.jsonl", "link");
  fs::create_hard_link("in.jsonl", "hard");
  for (const std::string out : {"in.jsonl", "./folder/../in.jsonl", "link", "hard"}) {
    EXPECT_THAT(refusal("in.jsonl", out),
                AllOf(HasSubstr("--output " + out), HasSubstr("--prompts in.jsonl"),
                      HasSubstr("the same file")));
    EXPECT_THAT(refusal("in.jsonl", "-", out), HasSubstr("--trace " + out));
  }
  EXPECT_EQ(refusal("in.jsonl", "out.jsonl", "trace.json"), "");
}

TEST_F(FileRolesTest, TwoOutputsMayNotBeOne) {
  fs::create_symlink("new", "to-new");
  EXPECT_THAT(refusal("in.jsonl", "new", "to-new"),
              AllOf(HasSubstr("--output new"), HasSubstr("--trace to-new")));
  EXPECT_THAT(refusal("in.jsonl", "new", "folder/../new"), HasSubstr("the same file"));
  EXPECT_EQ(refusal("in.jsonl", "/dev/null", "/dev/null"), "") << "nothing is kept there";
}

TEST_F(FileRolesTest, PipesAreToldApartToo) {
  ASSERT_EQ(::mkfifo("pipe", 0600), 0);
  EXPECT_THAT(refusal("pipe", "pipe"), HasSubstr("the same file"));
}

/// Runs `check` with a descriptor led to a file.
template <typename Check>
void with_descriptor(int fd, const fs::path& path, Check check) {
  const int before = ::dup(fd);
  const FileDescriptor file(::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_GE(::dup2(file.get(), fd), 0);
  check();
  ::dup2(before, fd);
  ::close(before);
}

TEST_F(FileRolesTest, StandardStreamsCount) {
  std::string said;
  with_descriptor(STDIN_FILENO, "in.jsonl", [&] { said = refusal("-", "in.jsonl"); });
  EXPECT_THAT(said, HasSubstr("the same file"));
  for (const auto& [fd, name] :
       {std::pair(STDOUT_FILENO, "standard output"), std::pair(STDERR_FILENO, "standard error")}) {
    with_descriptor(fd, "in.jsonl", [&] { said = refusal("in.jsonl", "-"); });
    EXPECT_THAT(said, HasSubstr(std::string(name) + " and --prompts in.jsonl"));
    with_descriptor(fd, "log", [&] { said = refusal("in.jsonl", "log"); });
    EXPECT_THAT(said, AllOf(HasSubstr(name), HasSubstr("--output log"), HasSubstr("redirect")));
    with_descriptor(fd, "log", [&] { said = refusal("in.jsonl", "-"); });
    EXPECT_EQ(said, "");
  }
}

}  // namespace
}  // namespace zi
