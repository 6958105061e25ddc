#pragma once

namespace zi {

/// From now on, the first SIGINT, SIGTERM, SIGHUP (of a terminal that is closed; not under nohup)
/// or SIGUSR1 (which mpirun hands on to its ranks without ending them) is remembered instead of
/// ending the process; a second one of the same kind ends it.
void catch_stop_signals();

/// From now on, SIGINT, SIGTERM, SIGHUP and SIGUSR1 (as above) are remembered and counted; the
/// third one ends the process.
void count_stop_signals();

/// From now on, SIGINT and SIGTERM are remembered; take_stop_signal says which came last since it
/// was asked, or 0.
void remember_stop_signals();
int take_stop_signal();

/// From now on, who writes to a pipe that nobody reads gets an error, and the process goes on.
void ignore_closed_pipes();

/// The last signal that was received, or 0. Any thread.
int stop_signal();
/// How many there were since count_stop_signals. Any thread.
int stop_signal_count();

}  // namespace zi
