// SPDX-License-Identifier: Apache-2.0
#include "virt/domain_xml.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <iterator>
#include <pugixml.hpp>
#include <string>
#include <utility>

namespace kvmscope::virt {
namespace {

constexpr std::size_t kMaxXml = 8U << 20;
// nova wrote 1.0 before 23.0.0 (facts: nova/virt/libvirt/config.py, NOVA_NS).
constexpr const char* kNova11 = "http://openstack.org/xmlns/libvirt/nova/1.1";
constexpr const char* kNova10 = "http://openstack.org/xmlns/libvirt/nova/1.0";
constexpr const char* kOwn = "https://kvmscope.dev/xmlns/vm/1.0";

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r\n";
  const auto begin = text.find_first_not_of(kBlank);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

std::string text_of(const pugi::xml_node& node) {
  return std::string(trim(node.text().get()));
}

std::string attribute(const pugi::xml_node& node, const char* name) {
  return node.attribute(name).value();
}

std::string_view local_name(const pugi::xml_node& node) {
  const std::string_view name = node.name();
  const auto colon = name.find(':');
  return colon == std::string_view::npos ? name : name.substr(colon + 1);
}

/// The namespace that the element's prefix, or its lack of one, stands for: declared on it or around it.
std::string_view namespace_of(const pugi::xml_node& node) {
  const std::string_view name = node.name();
  const auto colon = name.find(':');
  const std::string declaration =
      colon == std::string_view::npos ? "xmlns" : "xmlns:" + std::string(name.substr(0, colon));
  for (pugi::xml_node at = node; at; at = at.parent())
    if (const pugi::xml_attribute found = at.attribute(declaration.c_str())) return found.value();
  return {};
}

pugi::xml_node child_in(const pugi::xml_node& parent, std::string_view space, std::string_view local) {
  for (const pugi::xml_node& child : parent.children())
    if (local_name(child) == local && namespace_of(child) == space) return child;
  return {};
}

std::optional<core::NovaMetadata> read_nova(const pugi::xml_node& metadata) {
  for (const char* space : {kNova11, kNova10}) {
    const pugi::xml_node instance = child_in(metadata, space, "instance");
    if (!instance) continue;
    const pugi::xml_node owner = child_in(instance, space, "owner");
    const pugi::xml_node project = child_in(owner, space, "project");
    const pugi::xml_node user = child_in(owner, space, "user");
    return core::NovaMetadata{.instance_name = text_of(child_in(instance, space, "name")),
                              .flavor = attribute(child_in(instance, space, "flavor"), "name"),
                              .project_id = attribute(project, "uuid"),
                              .project_name = text_of(project),
                              .user_id = attribute(user, "uuid"),
                              .user_name = text_of(user)};
  }
  return std::nullopt;
}

std::optional<core::OwnMetadata> read_own(const pugi::xml_node& metadata) {
  const pugi::xml_node vm = child_in(metadata, kOwn, "vm");
  if (!vm) return std::nullopt;
  return core::OwnMetadata{.tenant = attribute(vm, "tenant"), .name = attribute(vm, "name")};
}

/// Why no host block request will ever name this disk; empty if its source is a path.
std::string why_invisible(const pugi::xml_node& disk) {
  const std::string type = attribute(disk, "type");
  const pugi::xml_node source = disk.child("source");
  if (type == "network")
    return "network storage (" + attribute(source, "protocol") +
           "): QEMU reaches it without the host's block layer";
  if (type == "vhostuser") return "vhost-user: another process serves it from shared memory";
  if (type == "nvme") return "NVMe device passed through to QEMU";
  if (type == "vhostvdpa") return "vDPA device: the guest reaches it without the host's block layer";
  if (type == "volume") return "volume of a storage pool: the domain names no path";
  if (type == "dir") return "directory shown as a disk: QEMU makes up its content";
  if (type != "file" && type != "block") return "disk type '" + type + "' is not known";
  return {};
}

core::Disk read_disk(const pugi::xml_node& node) {
  core::Disk disk;
  disk.target = attribute(node.child("target"), "dev");
  disk.alias = attribute(node.child("alias"), "name");
  disk.invisible_reason = why_invisible(node);
  if (!disk.invisible_reason.empty()) return disk;
  disk.source = attribute(node.child("source"), attribute(node, "type") == "block" ? "dev" : "file");
  if (disk.source.empty()) disk.invisible_reason = "empty drive";
  return disk;
}

/// The path on the host of an image: a <backingStore>, a <dataStore>, a <mirror>. Empty: none, as for the
/// <backingStore/> that ends a chain.
std::string image_path(const pugi::xml_node& image) {
  const std::string type = attribute(image, "type");
  if (type == "file") return attribute(image.child("source"), "file");
  if (type == "block") return attribute(image.child("source"), "dev");
  return {};
}

/// A disk's paths as they are found, up to the bound.
struct MoreImages {
  const std::string& top;
  std::size_t left = kMaxMoreImages;
  std::vector<std::string> paths;

  void add(std::string path) {
    if (path.empty() || path == top || std::ranges::find(paths, path) != paths.end()) return;
    paths.push_back(std::move(path));
  }
  /// All that `image` reads from, and itself unless it is the disk. One that has no path (network storage)
  /// may lie on one that has.
  void add_chain(pugi::xml_node image, bool is_disk) {
    for (; image && left > 0; image = image.child("backingStore"), is_disk = false) {
      --left;
      if (!is_disk) add(image_path(image));
      add(image_path(image.child("source").child("dataStore")));  // of a qcow2 that holds only the tables
    }
  }
};

std::vector<std::string> read_more_images(const pugi::xml_node& node, const core::Disk& disk) {
  MoreImages images{.top = disk.source, .left = kMaxMoreImages, .paths = {}};
  // The target first: guest writes go there from now on, whatever the length of the chain.
  const pugi::xml_node mirror = node.child("mirror");
  if (mirror.child("source")) {
    images.add_chain(mirror, false);
  } else {
    images.add(attribute(mirror, "file"));  // as libvirt before 1.2.6 wrote it, also for a device
  }
  images.add_chain(node, true);
  return std::move(images.paths);
}

core::Nic read_nic(const pugi::xml_node& node) {
  core::Nic nic;
  const std::string type = attribute(node, "type");
  // For these, a target's name is not that of a host interface.
  if (type != "hostdev" && type != "vhostuser" && type != "vdpa" && type != "user")
    nic.tap = attribute(node.child("target"), "dev");
  nic.mac = attribute(node.child("mac"), "address");
  nic.alias = attribute(node.child("alias"), "name");
  nic.model = attribute(node.child("model"), "type");
  if (nic.tap.empty()) nic.invisible_reason = "an interface of type " + type + " has no tap";
  return nic;
}

template <typename T>
T number_or(std::string_view text, T otherwise) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? value : otherwise;
}

std::uint32_t read_vcpus(const pugi::xml_node& vcpu) {
  const std::string current = attribute(vcpu, "current");
  return number_or<std::uint32_t>(current.empty() ? text_of(vcpu) : current, 0);
}

/// <label>+64055:+64055</label>. Names are not looked up: that might ask a server.
std::optional<std::uint32_t> read_user(const pugi::xml_node& domain) {
  for (const pugi::xml_node& label : domain.children("seclabel")) {
    if (attribute(label, "model") != "dac") continue;
    std::string user = text_of(label.child("label"));
    user = user.substr(0, user.find(':'));
    if (user.starts_with('+')) user.erase(0, 1);
    constexpr std::uint32_t kNobody = 0xFFFFFFFF;
    const auto number = number_or(user, kNobody);
    if (number != kNobody) return number;
  }
  return std::nullopt;
}

bool is_uuid(std::string_view text) {
  if (text.size() != 36) return false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? text[i] != '-' : std::isxdigit(static_cast<unsigned char>(text[i])) == 0) return false;
  }
  return true;
}

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::unexpected<core::Error> broken(const std::string& what) {
  return core::fail(core::ErrorCode::corrupt, "domain XML: " + what);
}

}  // namespace

core::Result<DomainXml> parse_domain_xml(std::string_view xml) {
  if (xml.size() > kMaxXml) return broken("larger than 8 MiB");
  pugi::xml_document document;
  const pugi::xml_parse_result parsed =
      document.load_buffer(xml.data(), xml.size(), pugi::parse_default, pugi::encoding_utf8);
  if (!parsed) {
    const auto offset =
        std::min(static_cast<std::size_t>(std::max<std::ptrdiff_t>(parsed.offset, 0)), xml.size());
    const auto line = 1 + std::ranges::count(xml.substr(0, offset), '\n');
    return broken("line " + std::to_string(line) + ": " + parsed.description());
  }
  pugi::xml_node domain = document.document_element();
  if (std::string_view(domain.name()) == "domstatus") domain = domain.child("domain");
  if (std::string_view(domain.name()) != "domain")
    return broken("the root element is <" + std::string(std::string_view(domain.name()).substr(0, 64)) +
                  ">, not <domain>");

  DomainXml result;
  core::VmFacts& facts = result.facts;
  facts.uuid.value = lower(text_of(domain.child("uuid")));
  if (!is_uuid(facts.uuid.value)) return broken("<uuid> is missing or not a UUID");
  facts.name = text_of(domain.child("name"));
  if (facts.name.empty()) return broken("<name> is missing or empty");
  facts.domain_id = number_or<std::int32_t>(attribute(domain, "id"), -1);
  facts.vcpus = read_vcpus(domain.child("vcpu"));
  facts.max_vcpus = number_or<std::uint32_t>(text_of(domain.child("vcpu")), 0);
  const pugi::xml_node devices = domain.child("devices");
  for (const pugi::xml_node& disk : devices.children("disk")) {
    facts.disks.push_back(read_disk(disk));
    result.more_images.push_back(read_more_images(disk, facts.disks.back()));
  }
  for (const pugi::xml_node& nic : devices.children("interface")) facts.nics.push_back(read_nic(nic));
  result.emulator = text_of(devices.child("emulator"));
  result.user = read_user(domain);
  const pugi::xml_node metadata = domain.child("metadata");
  facts.nova = read_nova(metadata);
  facts.own = read_own(metadata);
  return result;
}

}  // namespace kvmscope::virt
