// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <libvirt/libvirt.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "hostd/core/ids.h"
#include "hostd/core/result.h"
#include "virt/block_stats.h"
#include "virt/domain_event.h"

namespace kvmscope::virt {

/// Called on libvirt's event loop: must not block.
struct ConnectionEvents {
  std::function<void(DomainEvent)> on_domain;
  std::function<void(std::string)> on_closed;
};

/// One read-only connection with its event registrations. Every call blocks as long as libvirt pleases, and
/// may be made by several threads at once. unavailable: the connection is lost.
class Connection {
 public:
  struct Options {
    std::string uri;
    /// Released when the connection has been closed for good.
    std::shared_ptr<void> until_closed;
  };

  static core::Result<std::shared_ptr<Connection>> open(const Options& options, ConnectionEvents events);
  /// Returns at once: closing speaks to libvirtd, and so happens on a thread of its own.
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// URI and versions.
  core::Result<std::string> describe() const;
  /// Whether libvirtd answers at all: touches no domain, whose lock may be held for long.
  core::Result<void> ping() const;
  /// Waits for the lock of each domain in turn.
  core::Result<std::vector<ListedDomain>> running_domains() const;
  /// Of all running domains. Waits for the lock of each in turn, but for no job on one: whose statistics are
  /// not to be had at once has no disks here.
  core::Result<std::vector<BlockReading>> block_stats() const;
  /// not_found if there is no such domain.
  core::Result<std::string> domain_xml(const core::VmUuid& uuid) const;
  /// libvirt's running id, -1 if it does not run. not_found if there is no such domain.
  core::Result<std::int32_t> domain_id(const core::VmUuid& uuid) const;

 private:
  Connection(virConnectPtr connection, Options options)
      : connection_(connection), options_(std::move(options)) {}
  core::Result<void> subscribe(const std::shared_ptr<ConnectionEvents>& events);
  core::Error last_error(std::string_view what) const;

  virConnectPtr connection_;
  Options options_;
  std::vector<int> subscriptions_;
};

}  // namespace kvmscope::virt
