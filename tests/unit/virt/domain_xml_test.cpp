// SPDX-License-Identifier: Apache-2.0
#include "virt/domain_xml.h"

#include <fstream>
#include <iterator>

#include "tests/support/catch.h"

namespace kvmscope::virt {
namespace {

const std::string kUuid = "6b766d73-0000-4000-8000-00000000000a";

std::string domain(const std::string& inside) {
  return "<domain type='kvm' id='3'><name>a</name><uuid>" + kUuid + "</uuid>" + inside + "</domain>";
}

DomainXml parse_all(const std::string& xml) {
  CAPTURE(xml);
  const auto domain = parse_domain_xml(xml);
  if (!domain) FAIL(domain.error().message());
  CHECK(domain->more_images.size() == domain->facts.disks.size());
  return *domain;
}

core::VmFacts parse(const std::string& xml) {
  return parse_all(xml).facts;
}

using Paths = std::vector<std::string>;

/// Of a disk whose top image is /top, if it has one, and which has these elements.
Paths more_images(const std::string& inside, const std::string& top = "<source file='/top'/>") {
  const DomainXml parsed =
      parse_all(domain("<devices><disk type='file'>" + inside + top + "</disk></devices>"));
  CHECK(parsed.facts.disks.at(0).source == (top.empty() ? "" : "/top"));
  return parsed.more_images.at(0);
}

std::string error_of(std::string_view xml) {
  const auto facts = parse_domain_xml(xml);
  REQUIRE_FALSE(facts);
  CHECK(facts.error().code() == core::ErrorCode::corrupt);
  return facts.error().message();
}

std::optional<core::NovaMetadata> nova_of(const std::string& metadata) {
  return parse(domain("<metadata>" + metadata + "</metadata>")).nova;
}

std::string sample(const std::string& name) {
  std::ifstream file(std::string(KVMSCOPE_SOURCE_DIR "/tests/fuzz/virt/corpus/") + name);
  REQUIRE(file);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_CASE("a running domain's XML as libvirt and nova 34 write it") {
  const core::VmFacts facts = parse(sample("nova34.xml"));
  CHECK(facts.uuid.value == "c6f6e5e2-5a0c-4a63-9a8a-0f4f5b6f7c11");
  CHECK(facts.name == "instance-00000001");
  CHECK(facts.domain_id == 1);
  CHECK(facts.vcpus == 2);
  CHECK(facts.nova == core::NovaMetadata{"web & <1>", "m1.small", "0b1c2d3e4f5061728394a5b6c7d8e9f0",
                                         "shop & co", "9f8e7d6c5b4a39281706f5e4d3c2b1a0", "bob"});
  CHECK_FALSE(facts.own);
  REQUIRE(facts.disks.size() == 3);
  CHECK(facts.disks[0].target == "vda");
  CHECK(facts.disks[0].alias == "virtio-disk0");
  CHECK(facts.disks[0].source == "/var/lib/nova/instances/c6f6e5e2-5a0c-4a63-9a8a-0f4f5b6f7c11/disk");
  CHECK(facts.disks[0].invisible_reason.empty());  // the top layer, not its backing file
  CHECK(facts.disks[1].target == "vdb");
  CHECK(facts.disks[1].source.empty());
  CHECK(facts.disks[1].invisible_reason.find("rbd") != std::string::npos);
  CHECK(facts.disks[2].invisible_reason == "empty drive");
  REQUIRE(facts.nics.size() == 2);
  CHECK(facts.nics[0] ==
        core::Nic{.tap = "tapb9c0f2e1-11", .mac = "fa:16:3e:aa:bb:cc", .alias = "net0", .model = "virtio"});
  CHECK(facts.nics[1] == core::Nic{.mac = "fa:16:3e:aa:bb:cd",
                                   .alias = "hostdev0",
                                   .invisible_reason = "an interface of type hostdev has no tap"});
}

TEST_CASE("nova's metadata by namespace, whatever the prefix") {
  const std::string inside =
      "<X:name>n</X:name><X:owner><X:user uuid='u'>b</X:user><X:project uuid='p'>s</X:project></X:owner>"
      "<X:flavor name='f'><X:memory>1</X:memory></X:flavor>";
  const auto with_prefix = [&](const std::string& prefix, const std::string& space) {
    std::string text = "<X:instance xmlns:X='" + space + "'>" + inside + "</X:instance>";
    for (auto at = text.find("X:"); at != std::string::npos; at = text.find("X:"))
      text.replace(at, 2, prefix.empty() ? "" : prefix + ":");
    if (const auto at = text.find("xmlns:X"); at != std::string::npos)
      text.replace(at, 7, prefix.empty() ? "xmlns" : "xmlns:" + prefix);
    return text;
  };
  const core::NovaMetadata expected{"n", "f", "p", "s", "u", "b"};
  const std::string v11 = "http://openstack.org/xmlns/libvirt/nova/1.1";
  const std::string v10 = "http://openstack.org/xmlns/libvirt/nova/1.0";
  for (const std::string& space : {v10, v11})
    for (const char* prefix : {"nova", "instance", "n1", ""})
      CHECK(nova_of(with_prefix(prefix, space)) == expected);

  SECTION("1.1 goes before 1.0, whichever comes first") {
    const std::string old = "<o:instance xmlns:o='" + v10 + "'><o:name>old</o:name></o:instance>";
    CHECK(nova_of(old + with_prefix("n", v11)) == expected);
    CHECK(nova_of(with_prefix("n", v11) + old) == expected);
  }
  SECTION("the prefix may be declared further out") {
    const auto facts =
        parse("<domain id='1' xmlns:q='" + v11 + "'><name>a</name><uuid>" + kUuid +
              "</uuid><metadata><q:instance><q:name>n</q:name></q:instance></metadata></domain>");
    CHECK(facts.nova->instance_name == "n");
  }
  SECTION("a known prefix of another namespace is not nova's") {
    CHECK_FALSE(
        nova_of("<nova:instance xmlns:nova='http://example.com/x'><nova:name>n</nova:name></nova:instance>"));
    CHECK_FALSE(nova_of("<nova:instance><nova:name>n</nova:name></nova:instance>"));
    CHECK_FALSE(nova_of("<instance><name>n</name></instance>"));
  }
  SECTION("an owner of another namespace owns nothing") {
    const auto found = nova_of("<n:instance xmlns:n='" + v11 +
                               "' xmlns:e='urn:evil'><n:name>n</n:name>"
                               "<e:owner><e:project uuid='stolen'/></e:owner>"
                               "<n:owner><e:project uuid='stolen'/></n:owner></n:instance>");
    CHECK(found->project_id.empty());
  }
  SECTION("what is absent is empty") {
    CHECK(nova_of("<n:instance xmlns:n='" + v11 + "'/>") == core::NovaMetadata{});
    CHECK(nova_of("<n:instance xmlns:n='" + v11 + "'><n:owner/></n:instance>") == core::NovaMetadata{});
    CHECK_FALSE(nova_of(""));
  }
  SECTION("only directly in the domain's own metadata") {
    CHECK_FALSE(parse(domain("<devices>" + with_prefix("n", v11) + "</devices>")).nova);
    CHECK_FALSE(nova_of("<x xmlns='urn:x'>" + with_prefix("n", v11) + "</x>"));
  }
}

TEST_CASE("own metadata") {
  const auto own = [](const std::string& metadata) {
    return parse(domain("<metadata>" + metadata + "</metadata>")).own;
  };
  CHECK(own("<kvmscope:vm xmlns:kvmscope='https://kvmscope.dev/xmlns/vm/1.0' tenant='t&amp;1' "
            "name='&lt;n&gt;'/>") == core::OwnMetadata{"t&1", "<n>"});
  CHECK(own("<x:vm xmlns:x='https://kvmscope.dev/xmlns/vm/1.0' tenant='t'/>") == core::OwnMetadata{"t", ""});
  CHECK(own("<vm xmlns='https://kvmscope.dev/xmlns/vm/1.0'/>") == core::OwnMetadata{});
  CHECK_FALSE(own("<kvmscope:vm xmlns:kvmscope='https://kvmscope.dev/xmlns/vm/2.0' tenant='t'/>"));
}

TEST_CASE("disks: a path, or the reason why there is none to trace") {
  struct Row {
    std::string xml, source, reason;
  };
  const std::vector<Row> rows = {
      {"<disk type='file'><source file='/a'/></disk>", "/a", ""},
      {"<disk type='block'><source dev='/dev/disk/by-id/x'/></disk>", "/dev/disk/by-id/x", ""},
      {"<disk type='file'><source file='/top'/><backingStore type='file'><source "
       "file='/base'/></backingStore></disk>",
       "/top", ""},
      {"<disk type='file'><backingStore type='file'><source file='/base'/></backingStore></disk>", "",
       "empty drive"},
      {"<disk type='file' device='cdrom'/>", "", "empty drive"},
      {"<disk type='block' device='cdrom'><source file='/wrong'/></disk>", "", "empty drive"},
      {"<disk type='network'><source protocol='rbd' name='p/i'/></disk>", "", "network storage (rbd)"},
      {"<disk type='vhostuser'><source type='unix' path='/s'/></disk>", "", "vhost-user"},
      {"<disk type='vhostvdpa'><source dev='/dev/vhost-vdpa-0'/></disk>", "", "vDPA"},
      {"<disk type='nvme'><source type='pci' namespace='1'/></disk>", "", "NVMe"},
      {"<disk type='volume'><source pool='p' volume='v'/></disk>", "", "volume"},
      {"<disk type='dir'><source dir='/d'/></disk>", "", "directory"},
      {"<disk type='newer'/>", "", "disk type 'newer'"},
      {"<disk/>", "", "disk type ''"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.xml);
    const auto facts = parse(domain("<devices>" + row.xml + "</devices>"));
    REQUIRE(facts.disks.size() == 1);
    CHECK(facts.disks[0].source == row.source);
    CHECK(facts.disks[0].invisible_reason.starts_with(row.reason));
    CHECK(facts.disks[0].invisible_reason.empty() == row.reason.empty());
  }
}

TEST_CASE("all images below and beside a disk's top one are named") {
  const std::string data =
      "<source file='/top'><dataStore type='block'><source dev='/dev/data'/></dataStore></source>";
  const std::string base = "<backingStore type='file'><source file='/base'/><backingStore/></backingStore>";
  const std::string chain = "<backingStore type='block'><source dev='/dev/mid'/>" + base + "</backingStore>";
  struct Row {
    std::string xml;
    Paths paths;
  };
  const std::vector<Row> rows = {
      {"", {}},
      {"<backingStore/>", {}},
      {base, {"/base"}},
      {chain, {"/dev/mid", "/base"}},
      // What has no path itself may lie on what has.
      {"<backingStore type='network'><source protocol='nbd'/>" + base + "</backingStore>", {"/base"}},
      {"<backingStore type='dir'><source dir='/d'/></backingStore>", {}},
      {"<backingStore type='nvme'><source type='pci'/></backingStore>", {}},
      {"<backingStore type='vhostuser'><source path='/s'/></backingStore>", {}},
      {"<backingStore type='volume'><source pool='p' volume='v'/></backingStore>", {}},
      {"<backingStore type='newer'><source file='/f'/></backingStore>", {}},
      {"<backingStore type='file'><source dev='/wrong'/></backingStore>", {}},
      {"<backingStore type='file'/>", {}},
      // A block job's target: as of now, with a chain of its own, and as it was written once.
      {"<mirror type='file' job='copy'><source file='/copy'/></mirror>", {"/copy"}},
      {"<mirror type='block' job='copy'><source dev='/dev/copy'/></mirror>" + base, {"/dev/copy", "/base"}},
      {"<mirror type='file' file='/copy' format='raw' job='copy' ready='yes'><format type='raw'/>"
       "<source file='/copy'/><backingStore type='file'><source file='/b2'/></backingStore></mirror>" +
           base,
       {"/copy", "/b2", "/base"}},
      {"<mirror type='network'><source protocol='nbd'/></mirror>", {}},
      {"<mirror file='/dev/old' format='raw'/>", {"/dev/old"}},
      {"<mirror/>", {}},
      // An active commit writes into an image of the chain.
      {base + "<mirror type='file' job='active-commit'><source file='/base'/></mirror>", {"/base"}},
      {"<backingStore type='file'><source file='/top'/></backingStore>", {}},
      {"<x><backingStore type='file'><source file='/base'/></backingStore></x>", {}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.xml);
    CHECK(more_images(row.xml) == row.paths);
  }
  CHECK(more_images(chain, data) == Paths{"/dev/data", "/dev/mid", "/base"});
  CHECK(more_images(chain, "") == Paths{"/dev/mid", "/base"});  // none of them becomes the top one
  const DomainXml parsed = parse_all(sample("nova34.xml"));
  CHECK(parsed.more_images == std::vector<Paths>{{"/var/lib/nova/instances/_base/0123456789abcdef"}, {}, {}});
}

TEST_CASE("libvirt's own note of a running domain is the domain") {
  const std::string inside = "<name>a</name><uuid>" + kUuid +
                             "</uuid><devices><disk type='file'><source file='/top'>" +
                             "<privateData><x/></privateData></source></disk></devices></domain>";
  CHECK(parse_all("<!-- do not edit --><domstatus state='running' pid='7'><taint flag='x'/><domain id='3'>" +
                  inside + "</domstatus>") == parse_all("<domain id='3'>" + inside));
  CHECK(error_of("<domstatus/>") == "domain XML: the root element is <>, not <domain>");
}

TEST_CASE("a chain that does not end is cut off") {
  const auto level = [](int i) {
    return "<backingStore type='file'><source file='/" + std::to_string(i) + "'/>";
  };
  std::string deep, end;
  for (int i = 0; i < 100'000; ++i) {
    deep += level(i);
    end += "</backingStore>";
  }
  const Paths found = more_images(deep + end + "<mirror type='file'><source file='/copy'/></mirror>");
  CHECK(found.size() < kMaxMoreImages);
  CHECK(found.size() > kMaxMoreImages - 4);
  CHECK(found[0] == "/copy");
  CHECK(found[1] == "/0");
}

TEST_CASE("NICs: a tap only where the target is a host interface") {
  const auto tap = [](const std::string& type) {
    return parse(domain("<devices><interface type='" + type + "'><target dev='if0'/></interface></devices>"))
        .nics.at(0)
        .tap;
  };
  for (const char* type : {"bridge", "network", "ethernet", "direct"}) CHECK(tap(type) == "if0");
  for (const char* type : {"hostdev", "vhostuser", "vdpa", "user"}) CHECK(tap(type).empty());
}

TEST_CASE("what its QEMU is, and whose") {
  const auto user = [](const std::string& label) {
    return parse_all(domain("<seclabel model='selinux'><label>1:2</label></seclabel><seclabel model='dac'>"
                            "<label>" +
                            label + "</label></seclabel>"))
        .user;
  };
  CHECK(user("+64055:+108") == 64055);
  CHECK(user("+0:+0") == 0);
  CHECK(user("107:107") == 107);
  CHECK_FALSE(user("qemu:qemu"));
  CHECK_FALSE(user(""));
  CHECK_FALSE(user("+"));
  CHECK_FALSE(user("-1:0"));
  CHECK_FALSE(user("99999999999:0"));
  CHECK_FALSE(parse_all(domain("<seclabel type='none' model='dac'/>")).user);
  CHECK(parse_all(domain("<devices><emulator> /usr/bin/q </emulator></devices>")).emulator == "/usr/bin/q");
  CHECK(parse_all(sample("chain.xml")).user == 64055);
}

TEST_CASE("small things") {
  CHECK(parse(domain("<vcpu>4</vcpu>")).vcpus == 4);
  CHECK(parse(domain("<vcpu placement='static' current='2'>4</vcpu>")).vcpus == 2);
  CHECK(parse(domain("<vcpu>-4</vcpu>")).vcpus == 0);
  CHECK(parse(domain("<vcpu>99999999999</vcpu>")).vcpus == 0);
  CHECK(parse(domain("")).domain_id == 3);
  CHECK(parse("<domain><name>a</name><uuid>" + kUuid + "</uuid></domain>").domain_id == -1);
  CHECK(parse("<domain id='99999999999'><name>a</name><uuid>" + kUuid + "</uuid></domain>").domain_id == -1);
  CHECK(parse("<?xml version='1.0'?><!-- x --><domain><name>\n a &amp; b "
              "</name><uuid>6B766D73-0000-4000-8000-00000000000A</uuid></domain>")
            .name == "a & b");
  CHECK(
      parse("<domain><name>a</name><uuid>6B766D73-0000-4000-8000-00000000000A</uuid></domain>").uuid.value ==
      kUuid);
  CHECK(parse(domain("<unknown><devices/></unknown><devices><tpm/><disk type='file'><new/></disk></devices>"))
            .disks.size() == 1);
}

TEST_CASE("hostile input is an error that names what is wrong") {
  CHECK(error_of("") == "domain XML: line 1: No document element found");
  CHECK(error_of("<domain>\n<name>a</wrong>").starts_with("domain XML: line 2: Start-end tags mismatch"));
  CHECK(error_of("<domain><name>a").starts_with("domain XML: line 1: "));
  CHECK(error_of("<html/>") == "domain XML: the root element is <html>, not <domain>");
  CHECK(error_of("<domain/>") == "domain XML: <uuid> is missing or not a UUID");
  CHECK(error_of("<domain><name>a</name><uuid>" + kUuid + "x</uuid></domain>") ==
        "domain XML: <uuid> is missing or not a UUID");
  CHECK(error_of("<domain><uuid>" + kUuid + "</uuid></domain>") == "domain XML: <name> is missing or empty");
  CHECK(error_of(std::string(9U << 20, ' ')) == "domain XML: larger than 8 MiB");
  CHECK(error_of(std::string_view("<domain\0/>", 10)).starts_with("domain XML: line 1: "));
  CHECK(error_of("<" + std::string(100'000, 'a') + "/>").size() < 200);

  SECTION("deep nesting") {
    std::string deep;
    for (int i = 0; i < 300'000; ++i) deep += "<a>";
    CHECK_FALSE(parse_domain_xml("<domain>" + deep).has_value());
    std::string closed = deep;
    for (int i = 0; i < 300'000; ++i) closed += "</a>";
    CHECK(parse(domain(closed)).name == "a");
    CHECK(parse(domain("<metadata>" + closed + "</metadata>")).name == "a");
  }
  SECTION("entities are not expanded") {
    const auto facts = parse(
        "<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;'><!ENTITY f SYSTEM 'file:///etc/passwd'>]>"
        "<domain><name>&b;&f;</name><uuid>" +
        kUuid + "</uuid></domain>");
    CHECK(facts.name == "&b;&f;");
  }
}

}  // namespace
}  // namespace kvmscope::virt
