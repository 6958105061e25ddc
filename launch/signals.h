#pragma once

namespace zi {

/// From now on SIGINT and SIGTERM are remembered instead of ending the process, once: a second one
/// ends it.
void catch_stop_signals();

/// The signal that was received, or 0.
int stop_signal();

}  // namespace zi
