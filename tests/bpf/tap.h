// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/stat.h>

#include <fstream>
#include <sstream>
#include <string>

#include "tests/bpf/rig.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf::test {

/// What the tap says of itself. (Its rx is what the guest has sent.)
struct TapStats {
  std::uint64_t rx_packets = 0;
  std::uint64_t rx_bytes = 0;
  std::uint64_t tx_packets = 0;
  std::uint64_t tx_bytes = 0;
  std::uint64_t tx_dropped = 0;
};

/// A process that counts as QEMU and has a tap, in a network namespace of their own.
class Tap {
 public:
  Tap(Rig& rig, const std::string& name, bool vm = true)
      : rig_(rig), name_(name), program_(start(vm ? rig.qemu(KVMSCOPE_TAP) : KVMSCOPE_TAP)) {}

  std::string ask(const std::string& what) {
    std::ofstream(dir_ / "fifo") << what << std::endl;
    ++asked_;
    std::string answer;
    rig_.until([&] {
      std::ifstream said(dir_ / "said");
      std::size_t lines = 0;
      for (std::string line; std::getline(said, line) && !said.eof(); ++lines) answer = line;
      return lines == asked_;
    });
    return answer;
  }
  void act(const std::string& what) { REQUIRE(ask(what) == "done"); }
  void inject(int count, int bytes) {
    run({"nsenter", "-t", std::to_string(program_.pid()), "-n", KVMSCOPE_TAP, "inject", name_,
         std::to_string(count), std::to_string(bytes)});
  }
  TapStats stats() {
    TapStats stats;
    std::istringstream(ask("stats")) >> stats.rx_packets >> stats.rx_bytes >> stats.tx_packets >>
        stats.tx_bytes >> stats.tx_dropped;
    return stats;
  }
  NicKey key() {
    std::uint32_t netns = 0;
    std::uint32_t index = 0;
    std::istringstream(ask("index")) >> netns >> index;
    return nic_key(netns, index);
  }

 private:
  Child start(const std::string& program) {
    REQUIRE(::mkfifo((dir_ / "fifo").c_str(), 0600) == 0);
    return Child({program, "serve", name_, (dir_ / "fifo").string(), (dir_ / "said").string()});
  }

  Rig& rig_;
  TempDir dir_;
  std::string name_;
  Child program_;
  std::size_t asked_ = 0;
};

}  // namespace kvmscope::bpf::test
