// SPDX-License-Identifier: Apache-2.0
#include <fstream>
#include <map>
#include <regex>
#include <string>

#include "bpf/catalogue.h"
#include "hostd/self_metrics.h"
#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

std::string type_and_unit(const core::Instrument& instrument) {
  switch (instrument.type) {
    case core::InstrumentType::counter:
      return "counter, " + std::string(instrument.unit);
    case core::InstrumentType::gauge:
      return "gauge, " + std::string(instrument.unit);
    case core::InstrumentType::histogram:
      return "histogram, " + std::string(instrument.unit);
  }
  return {};
}

TEST_CASE("docs/metrics.md names exactly the metrics there are, with their types and units") {
  std::map<std::string, std::string> built;
  for (const bpf::Kind& kind : bpf::catalogue()) {
    for (const core::Instrument* instrument : {kind.count, kind.sum}) {
      if (instrument != nullptr) built[std::string(instrument->name)] = type_and_unit(*instrument);
    }
  }
  for (const core::Instrument* instrument : self_instruments()) {
    built[std::string(instrument->name)] = type_and_unit(*instrument);
  }

  std::map<std::string, std::string> documented;
  std::ifstream page(std::string(KVMSCOPE_SOURCE_DIR) + "/docs/metrics.md");
  const std::regex row(R"(^\| `(kvmscope\.[a-z0-9_.]+)` \| ([^|]+) \|.*)");
  std::string line;
  while (std::getline(page, line)) {
    std::smatch match;
    if (std::regex_match(line, match, row)) documented[match[1]] = match[2];
  }
  REQUIRE(documented == built);
}

}  // namespace
}  // namespace kvmscope::hostd
