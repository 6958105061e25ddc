#include "comm/loss_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

namespace zi {
namespace {

using std::chrono::milliseconds;

/// The ranks of one host.
struct Group {
  std::string host;
  std::vector<int> silent;
  milliseconds silent_for{0};  // the longest of them
  bool whole = true;           // no other rank is there
};

/// A part of the sentence.
struct Named {
  std::string name;
  bool singular = true;
  milliseconds silent_for{0};
};

std::string ranks_text(const std::vector<int>& ranks) {
  if (ranks.size() == 1) return fmt::format("rank {}", ranks.front());
  return fmt::format("ranks {} and {}", fmt::join(ranks.begin(), ranks.end() - 1, ", "),
                     ranks.back());
}

std::string seconds_text(milliseconds time) {
  return fmt::format("{:.0f} s", std::chrono::duration<double>(time).count());
}

std::map<int, Group> by_host(const std::vector<RankSilence>& ranks, int lost, milliseconds from) {
  std::map<int, Group> groups;
  for (const RankSilence& r : ranks) {
    Group& group = groups[r.host];
    group.host = r.host_name;
    if (r.rank != 0 && (r.rank == lost || r.silent >= from)) {
      group.silent.push_back(r.rank);
      group.silent_for = std::max(group.silent_for, r.silent);
    } else {
      group.whole = false;
    }
  }
  return groups;
}

std::vector<Named> names_of(const std::map<int, Group>& groups) {
  std::map<std::string, int> hosts_of_name;
  for (const auto& entry : groups) ++hosts_of_name[entry.second.host];
  std::vector<Named> names;
  for (const auto& entry : groups) {
    const Group& group = entry.second;
    if (group.silent.empty()) continue;
    const std::string ranks = ranks_text(group.silent);
    const bool by_name = group.whole && hosts_of_name[group.host] == 1;
    names.push_back({.name = by_name ? fmt::format("host {} ({})", group.host, ranks)
                                     : fmt::format("{} on {}", ranks, group.host),
                     .singular = by_name || group.silent.size() == 1,
                     .silent_for = group.silent_for});
  }
  return names;
}

/// `a and b have been silent for 16 s`, `a has been silent for 17 s and b for 14 s`.
std::string sentence(const std::vector<Named>& names, milliseconds precision) {
  milliseconds least = names.front().silent_for, most = least;
  for (const Named& n : names) {
    least = std::min(least, n.silent_for);
    most = std::max(most, n.silent_for);
  }
  const bool one_time = most - least <= precision;
  const bool singular = names.front().singular && (!one_time || names.size() == 1);
  const std::string verb = singular ? "has been silent" : "have been silent";
  std::vector<std::string> parts;
  for (const Named& n : names) {
    parts.push_back(one_time ? n.name
                             : fmt::format("{}{} for {}", n.name, parts.empty() ? " " + verb : "",
                                           seconds_text(n.silent_for)));
  }
  const std::string text = fmt::format("{}", fmt::join(parts, " and "));
  return one_time ? fmt::format("{} {} for {}", text, verb, seconds_text(most)) : text;
}

}  // namespace

std::string silence_text(const std::vector<RankSilence>& ranks, int lost, milliseconds from,
                         milliseconds precision) {
  const std::map<int, Group> groups = by_host(ranks, lost, from);
  const std::vector<Named> names = names_of(groups);
  const Group& first = groups.at(ranks.front().host);  // rank 0's
  bool whole = true;                                   // hosts, and not some of their ranks
  bool others_speak = false;                           // of other hosts than rank 0's
  for (const auto& entry : groups) {
    const Group& group = entry.second;
    if (!group.silent.empty()) whole = whole && group.whole;
    if (&group != &first) others_speak = others_speak || !group.whole;
  }
  const bool alone = whole && names.size() > 1 && !others_speak;
  return sentence(names, precision) +
         (alone   ? fmt::format(": the network of {} may be down", first.host)
          : whole ? ": the host, its network or its processes have stopped"
                  : ", and other ranks there have not");
}

}  // namespace zi
