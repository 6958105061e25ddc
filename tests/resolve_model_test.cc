#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pwd.h>
#include <stdlib.h>
#include <unistd.h>

#include <map>
#include <optional>
#include <string>

#include "synthetic_checkpoint.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;
namespace fs = std::filesystem;

/// Runs with none of the variables that name a cache; puts them back afterwards.
class ResolveModelTest : public ::testing::Test {
 protected:
  ResolveModelTest() {
    for (const char* name :
         {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"}) {
      const char* value = ::getenv(name);
      before_[name] = value == nullptr ? std::nullopt : std::optional<std::string>(value);
      ::unsetenv(name);
    }
  }
  ~ResolveModelTest() override {
    for (const auto& [name, value] : before_) {
      if (value) {
        ::setenv(name.c_str(), value->c_str(), 1);
      } else {
        ::unsetenv(name.c_str());
      }
    }
  }
  static void set(const char* name, const fs::path& value) { ::setenv(name, value.c_str(), 1); }
  fs::path add_snapshot(const fs::path& hub, const std::string& hash) {
    const fs::path snapshot = hub / "models--bigscience--bloom" / "snapshots" / hash;
    fs::create_directories(snapshot);
    return snapshot;
  }
  void set_main(const fs::path& hub, const std::string& text) {
    fs::create_directories(hub / "models--bigscience--bloom" / "refs");
    test::write_text(hub / "models--bigscience--bloom" / "refs" / "main", text);
  }
  fs::path root() const { return directory_.path(); }

 private:
  test::TemporaryDirectory directory_;
  std::map<std::string, std::optional<std::string>> before_;
};

TEST_F(ResolveModelTest, ADirectoryIsTakenAsItIs) {
  EXPECT_EQ(resolve_model(root().string()), root());
}

TEST_F(ResolveModelTest, LooksIntoTheCacheThatTheEnvironmentNames) {
  const auto find_in = [&](const char* variable, const fs::path& value, const fs::path& hub) {
    const fs::path snapshot = add_snapshot(hub, "abc123");
    set(variable, value);
    EXPECT_EQ(resolve_model("bigscience/bloom"), snapshot) << variable;
  };
  // From the weakest to the strongest: each one set hides those before it.
  find_in("HOME", root() / "home", root() / "home/.cache/huggingface/hub");
  find_in("XDG_CACHE_HOME", root() / "xdg", root() / "xdg/huggingface/hub");
  find_in("HF_HOME", "~/hf", root() / "home/hf/hub");
  find_in("HUGGINGFACE_HUB_CACHE", root() / "old", root() / "old");
  find_in("HF_HUB_CACHE", root() / "hub", root() / "hub");
}

TEST_F(ResolveModelTest, ExpandsTheEnvironmentAsTheHubsClientDoes) {
  const fs::path snapshot = add_snapshot(root() / "home/hf/hub", "abc123");
  set("HOME", root() / "home");
  set("ZI_TEST_PART", "hf");
  for (const char* const value :
       {"~/hf", "$HOME/hf", "${HOME}/$ZI_TEST_PART", "~/${ZI_TEST_PART}"}) {
    set("HF_HOME", value);
    EXPECT_EQ(resolve_model("bigscience/bloom"), snapshot) << value;
  }
  set("ZI_TEST_TWICE", "~/$ZI_TEST_PART");  // the client expands the cache's place once more
  set("HF_HOME", "$ZI_TEST_TWICE");
  EXPECT_EQ(resolve_model("bigscience/bloom"), snapshot);
  set("HF_HUB_CACHE", "${HOME}/hf/${ZI_TEST_NOT_SET}/../hub");
  EXPECT_THAT([] { resolve_model("bigscience/bloom"); },
              ThrowsMessage<CheckpointError>(HasSubstr("/home/hf/${ZI_TEST_NOT_SET}/../hub")));
  set("HF_HUB_CACHE", "$ZI_TEST_TWICE/hub");  // but not this one
  EXPECT_THAT([] { resolve_model("bigscience/bloom"); },
              ThrowsMessage<CheckpointError>(HasSubstr("as ~/$ZI_TEST_PART/hub/models--")));
  if (const passwd* const user = ::getpwuid(::getuid())) {
    set("HF_HUB_CACHE", std::string("~") + user->pw_name + "/zi-no-cache");
    EXPECT_THAT([] { resolve_model("bigscience/bloom"); },
                ThrowsMessage<CheckpointError>(
                    HasSubstr(std::string(user->pw_dir) + "/zi-no-cache/models--")));
  }
  ::unsetenv("HF_HUB_CACHE");
  set("HF_HOME", "~no-such-user/$ZI_TEST_NOT_SET");  // both stay as they are
  EXPECT_THROW(resolve_model("bigscience/bloom"), CheckpointError);
}

TEST_F(ResolveModelTest, TakesTheSnapshotOfMain) {
  set("HF_HUB_CACHE", root());
  add_snapshot(root(), "aaa");
  const fs::path wanted = add_snapshot(root(), "bbb");
  set_main(root(), "bbb\n");
  EXPECT_EQ(resolve_model("bigscience/bloom"), wanted);
}

TEST_F(ResolveModelTest, TakesTheOnlySnapshotWhenMainNamesNone) {
  set("HF_HUB_CACHE", root());
  const fs::path only = add_snapshot(root(), "aaa");
  set_main(root(), "gone");
  EXPECT_EQ(resolve_model("bigscience/bloom"), only);
  set_main(root(), "../../..");
  EXPECT_EQ(resolve_model("bigscience/bloom"), only);
}

TEST_F(ResolveModelTest, RefusesToGuessAmongSnapshots) {
  set("HF_HUB_CACHE", root());
  add_snapshot(root(), "aaa");
  add_snapshot(root(), "bbb");
  EXPECT_THAT([] { resolve_model("bigscience/bloom"); },
              ThrowsMessage<CheckpointError>(HasSubstr("(aaa, bbb)")));
}

TEST_F(ResolveModelTest, NamesBothPlacesAndTheDownload) {
  set("HF_HUB_CACHE", root());
  EXPECT_THAT([] { resolve_model("bigscience/bloom"); },
              ThrowsMessage<CheckpointError>(
                  AllOf(HasSubstr((fs::current_path() / "bigscience/bloom").string()),
                        HasSubstr((root() / "models--bigscience--bloom").string()),
                        HasSubstr("hf download bigscience/bloom"),
                        HasSubstr("huggingface-cli download bigscience/bloom"))));
}

TEST_F(ResolveModelTest, SaysWhenThereIsNoCacheToLookInto) {
  EXPECT_THAT([] { resolve_model("bigscience/bloom"); },
              ThrowsMessage<CheckpointError>(HasSubstr("set HOME, HF_HOME or HF_HUB_CACHE")));
}

TEST_F(ResolveModelTest, PathsAreNotTakenForNames) {
  set("HF_HUB_CACHE", root());
  for (const char* path : {"/no/such", "./no", "../no", "a/b/c", "no/", "a/..", "", "a b", "~/x"}) {
    EXPECT_THAT([&] { resolve_model(path); },
                ThrowsMessage<CheckpointError>(HasSubstr("there is no directory")))
        << path;
  }
  test::write_text(root() / "file", "x");
  EXPECT_THAT([&] { resolve_model((root() / "file").string()); },
              ThrowsMessage<CheckpointError>(HasSubstr("is a file")));
}

}  // namespace
}  // namespace zi
