// SPDX-License-Identifier: Apache-2.0
// The registry's parts by themselves: ids, rules, pool, tenant table.
#include <cctype>
#include <set>

#include "tenancy/slot_pool.h"
#include "tenancy/tenant_resolver.h"
#include "tenancy/tenant_table.h"
#include "tests/support/catch.h"

namespace kvmscope::tenancy {
namespace {

TEST_CASE("an epoch's id is the same whoever computes it") {
  // printf '16:kvmscope epoch 14:boot1:u3:4712:991:t1:0' | sha256sum | cut -c1-32
  REQUIRE(epoch_id("boot", {"u"}, {471, 99}, {"t"}).value == "36f408af0a65363f671315520c976d9c");
}

TEST_CASE("an epoch's id differs in every field and never runs fields together") {
  const std::vector<core::EpochId> ids = {
      epoch_id("boot", {"uuid"}, {1, 2}, {"t"}),    epoch_id("boot2", {"uuid"}, {1, 2}, {"t"}),
      epoch_id("boot", {"uuid2"}, {1, 2}, {"t"}),   epoch_id("boot", {"uuid"}, {2, 2}, {"t"}),
      epoch_id("boot", {"uuid"}, {1, 3}, {"t"}),    epoch_id("boot", {"uuid"}, {1, 2}, {"t2"}),
      epoch_id("boot", {"uuid"}, {1, 2}, {""}),     epoch_id("boot", {"uuid"}, {1, 2}, {"t"}, 1),
      epoch_id("bootu", {"uid"}, {1, 2}, {"t"}),    epoch_id("boot", {"uuid1"}, {1, 2}, {"t"}),
      epoch_id("boot", {"uuid"}, {12, 2}, {"t"}),   epoch_id("boot", {"uuid"}, {1, 22}, {"t"}),
      epoch_id("boot", {"uuid1:1"}, {1, 2}, {"t"}),
  };
  REQUIRE(std::set<core::EpochId>(ids.begin(), ids.end()).size() == ids.size());
  for (const core::EpochId& id : ids) {
    REQUIRE(id.value.size() == 32);
    for (const char c : id.value) REQUIRE(std::isxdigit(static_cast<unsigned char>(c)) != 0);
  }
}

core::NovaMetadata nova_of(const std::string& project, const std::string& instance = {}) {
  core::NovaMetadata nova;
  nova.project_id = project;
  nova.instance_name = instance;
  return nova;
}

core::VmFacts vm(const std::string& uuid, const std::string& name, const std::string& nova,
                 const std::string& own) {
  core::VmFacts facts;
  facts.uuid = {uuid};
  facts.name = name;
  if (!nova.empty()) facts.nova = nova_of(nova);
  if (!own.empty()) facts.own = core::OwnMetadata{own, {}};
  return facts;
}

TEST_CASE("the first source in the configured order that says something wins") {
  const std::vector<TenantRule> rules = {
      {"0000-AB", "", {"by-uuid"}}, {"", "web-[0-9]*", {"web"}}, {"", "db?", {"db"}}};
  struct Case {
    std::vector<TenancySource> sources;
    core::VmFacts facts;
    std::string tenant;
    std::string source;
  };
  const std::vector<TenancySource> all = {TenancySource::nova, TenancySource::own_metadata,
                                          TenancySource::rules};
  const Case cases[] = {
      {all, vm("u", "web-1", "project", "own"), "project", "nova"},
      {{TenancySource::own_metadata, TenancySource::nova},
       vm("u", "web-1", "project", "own"),
       "own",
       "own_metadata"},
      {{TenancySource::rules, TenancySource::nova}, vm("u", "web-1", "project", ""), "web", "rule"},
      {all, vm("u", "web-1", "", "own"), "own", "own_metadata"},
      {all, vm("u", "web-17", "", ""), "web", "rule"},
      {all, vm("u", "web-x", "", ""), "", ""},
      {all, vm("u", "db1", "", ""), "db", "rule"},
      {all, vm("u", "db12", "", ""), "", ""},
      {all, vm("0000-ab", "web-1", "", ""), "by-uuid",
       "rule"},  // the first rule that matches; case does not matter
      {{TenancySource::nova}, vm("u", "web-1", "", "own"), "", ""},  // what is not configured does not speak
      {{}, vm("u", "web-1", "project", "own"), "", ""},
  };
  for (const Case& each : cases) {
    CAPTURE(each.facts.name, each.tenant);
    const auto owner = TenantResolver(each.sources, rules).by_facts(each.facts);
    REQUIRE((owner ? owner->tenant.value : "") == each.tenant);
    REQUIRE((owner ? owner->source : "") == each.source);
  }
}

TEST_CASE("metadata that is there but empty says nothing") {
  core::VmFacts facts = vm("u", "n", "", "own");
  facts.nova = nova_of({}, "only a name");
  const auto owner = TenantResolver({TenancySource::nova, TenancySource::own_metadata}, {}).by_facts(facts);
  REQUIRE(owner->source == "own_metadata");
}

TEST_CASE("a hint is judged by rules alone, and not past a rule that it cannot decide") {
  const std::vector<TenantRule> rules = {{"", "web-*", {"web"}}, {"0000-ab", "", {"by-uuid"}}};
  const TenantResolver resolver({TenancySource::nova, TenancySource::rules}, rules);
  REQUIRE(resolver.by_hint({.uuid = {"0000-ab"}, .guest_name = "other"})->tenant.value == "by-uuid");
  REQUIRE(resolver.by_hint({.uuid = {}, .guest_name = "web-1"})->tenant.value == "web");
  REQUIRE_FALSE(resolver.by_hint({.uuid = {"0000-ab"}, .guest_name = {}}));  // its name might have been web-1
  REQUIRE_FALSE(resolver.by_hint({.uuid = {"0000-cd"}, .guest_name = "other"}));
  REQUIRE_FALSE(TenantResolver({TenancySource::nova}, rules).by_hint({.uuid = {}, .guest_name = "web-1"}));
}

TEST_CASE("a slot goes round, each time with a generation of its own") {
  SlotPool pool(3);
  Actions out;
  pool.refill(5, {}, out);  // more than there are
  REQUIRE(out.size() == 2);
  const auto first = std::get<InstallSpare>(out[0]).identity;
  REQUIRE(first == core::SlotIdentity{{1}, {2}});
  REQUIRE(std::get<InstallSpare>(out[1]).identity == core::SlotIdentity{{2}, {3}});

  REQUIRE_FALSE(pool.retire(first));
  REQUIRE_FALSE(pool.retired(first));
  REQUIRE(pool.installed(first, 7));
  REQUIRE_FALSE(pool.installed(first, 8));
  REQUIRE_FALSE(pool.install_failed(first));
  REQUIRE(pool.spare() == 1);
  REQUIRE(pool.take(first, 9));
  REQUIRE_FALSE(pool.take(first, 9));
  REQUIRE(pool.installed_unix_ns(first) == 7);
  REQUIRE(pool.retire(first));
  REQUIRE_FALSE(pool.retire(first));
  out.clear();
  pool.refill(2, {}, out);
  REQUIRE(out.empty());  // not before it is retired
  REQUIRE(pool.retired(first));
  REQUIRE_FALSE(pool.retired(first));
  pool.refill(2, {.disks = 6}, out);
  REQUIRE(out.size() == 1);
  const auto again = std::get<InstallSpare>(out[0]);
  REQUIRE(again.identity == core::SlotIdentity{{1}, {4}});
  REQUIRE(again.shape.disks == 6);
  REQUIRE_FALSE(pool.installed(first, 1));  // an echo of the first time
  REQUIRE_FALSE(pool.take({{0}, {1}}, 1));
  REQUIRE_FALSE(pool.take({{99}, {1}}, 1));
  REQUIRE(pool.total() == 2);
}

TEST_CASE("a claim that is heard of before the installation proves it") {
  SlotPool pool(3);
  Actions out;
  pool.refill(1, {}, out);
  const auto identity = std::get<InstallSpare>(out[0]).identity;
  REQUIRE(pool.take(identity, 5));
  REQUIRE_FALSE(pool.installed(identity, 6));
  REQUIRE(pool.used() == 1);
  REQUIRE(pool.spare() == 0);
}

TEST_CASE("a tenant keeps its index until it is let go, and indices are used again") {
  TenantTable table(3);
  Actions out;
  REQUIRE(table.index_of({"a"}, 4096, out) == 1U);
  REQUIRE(table.index_of({"b"}, 4096, out) == 2U);
  REQUIRE(table.index_of({"a"}, 4096, out) == 1U);
  REQUIRE(out.size() == 2);
  REQUIRE_FALSE(table.index_of({"c"}, 4096, out));
  table.keep_only({2}, out);
  REQUIRE(std::get<RemoveTenant>(out.back()).index == 1);
  REQUIRE(table.index_of({"c"}, 4096, out) == 1U);
  REQUIRE(std::get<AddTenant>(out.back()).tenant.value == "c");
}

}  // namespace
}  // namespace kvmscope::tenancy
