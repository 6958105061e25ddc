// The main of tests that run under mpirun: MPI lives as long as the process, and a failed rank ends
// the job.

#include <gtest/gtest.h>

#include <string_view>

#include "mpi_world.h"
#include "zero_infer/log.h"

namespace zi::test {

static World* g_world = nullptr;
World& world() { return *g_world; }

static bool g_cuda = false;
bool wants_cuda() { return g_cuda; }

}  // namespace zi::test

int main(int argc, char** argv) {
  zi::set_log(zi::LogLevel::kQuiet, "");
  zi::World world(&argc, &argv);
  zi::test::g_world = &world;
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) zi::test::g_cuda |= std::string_view(argv[i]) == "--cuda";
  const int failed = RUN_ALL_TESTS();
  if (failed != 0) world.abort(failed);
  return 0;
}
