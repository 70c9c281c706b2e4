// SPDX-License-Identifier: Apache-2.0
#include "virt/connection.h"

#include <fmt/core.h>
#include <libvirt/virterror.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <system_error>
#include <thread>
#include <utility>

namespace kvmscope::virt {
namespace {

struct DomainDeleter {
  void operator()(virDomainPtr domain) const { virDomainFree(domain); }
};
using DomainHandle = std::unique_ptr<virDomain, DomainDeleter>;

using Events = std::shared_ptr<ConnectionEvents>;
Events& events_of(void* opaque) {
  return *static_cast<Events*>(opaque);
}
void free_events(void* opaque) noexcept {
  delete static_cast<Events*>(opaque);
}

core::VmUuid uuid_of(virDomainPtr domain) {
  std::array<char, VIR_UUID_STRING_BUFLEN> text{};
  virDomainGetUUIDString(domain, text.data());
  return {text.data()};
}

void tell(virDomainPtr domain, bool stopped, void* opaque) {
  events_of(opaque)->on_domain({uuid_of(domain), virDomainGetName(domain), stopped});
}

void on_lifecycle(virConnectPtr, virDomainPtr domain, int event, int, void* opaque) noexcept {
  // The guest has shut down, its QEMU is about to end: nothing new, and libvirt may hold its lock already.
  if (event == VIR_DOMAIN_EVENT_SHUTDOWN) return;
  tell(domain, event == VIR_DOMAIN_EVENT_STOPPED, opaque);
}

/// Any other event, whatever it carries: what is true now is asked afterwards.
template <typename... Details>
struct Changed {
  static void call(virConnectPtr, virDomainPtr domain, Details..., void* opaque) noexcept {
    tell(domain, false, opaque);
  }
};

void on_close(virConnectPtr, int reason, void* opaque) noexcept {
  std::string why = "connection closed";
  if (reason == VIR_CONNECT_CLOSE_REASON_EOF) why = "libvirtd closed the connection";
  events_of(opaque)->on_closed(std::move(why));
}

template <typename Callback>
virConnectDomainEventGenericCallback generic(Callback callback) {
  return reinterpret_cast<virConnectDomainEventGenericCallback>(reinterpret_cast<void (*)()>(callback));
}

StatField field_of(const virTypedParameter& parameter) {
  StatField field{.name = parameter.field, .text = {}};
  if (parameter.type == VIR_TYPED_PARAM_STRING) field.text = parameter.value.s;
  if (parameter.type == VIR_TYPED_PARAM_ULLONG) field.number = parameter.value.ul;
  if (parameter.type == VIR_TYPED_PARAM_UINT) field.number = parameter.value.ui;
  if (parameter.type == VIR_TYPED_PARAM_LLONG && parameter.value.l > 0)
    field.number = static_cast<std::uint64_t>(parameter.value.l);
  return field;
}

std::string version_text(unsigned long version) {
  return fmt::format("{}.{}.{}", version / 1'000'000, version / 1'000 % 1'000, version % 1'000);
}

}  // namespace

core::Error Connection::last_error(std::string_view what) const {
  const virError* const error = virGetLastError();
  core::ErrorCode code = core::ErrorCode::system;
  if (error != nullptr && error->code == VIR_ERR_NO_DOMAIN) code = core::ErrorCode::not_found;
  if (error != nullptr && (error->code == VIR_ERR_AUTH_FAILED || error->code == VIR_ERR_ACCESS_DENIED))
    code = core::ErrorCode::permission_denied;
  std::string message = fmt::format("{}: {}", what, virGetLastErrorMessage());
  if (connection_ != nullptr && virConnectIsAlive(connection_) != 1) code = core::ErrorCode::unavailable;
  return {code, std::move(message)};
}

core::Result<std::shared_ptr<Connection>> Connection::open(const Options& options, ConnectionEvents events) {
  std::shared_ptr<Connection> self(new Connection(virConnectOpenReadOnly(options.uri.c_str()), options));
  if (self->connection_ == nullptr) return core::fail(self->last_error(options.uri));
  // Without keepalive: who is dead shows by our own probes (docs/adr/0011).
  const auto shared_events = std::make_shared<ConnectionEvents>(std::move(events));
  if (const auto done = self->subscribe(shared_events); !done) return core::fail(done.error());
  return self;
}

core::Result<void> Connection::subscribe(const Events& events) {
  auto closed = std::make_unique<Events>(events);
  if (virConnectRegisterCloseCallback(connection_, on_close, closed.get(), free_events) != 0)
    return core::fail(last_error("close callback"));
  (void)closed.release();  // libvirt frees it

  struct Subscription {
    int event;
    virConnectDomainEventGenericCallback callback;
  };
  const std::array wanted = {
      Subscription{VIR_DOMAIN_EVENT_ID_LIFECYCLE, generic(on_lifecycle)},
      Subscription{VIR_DOMAIN_EVENT_ID_REBOOT, generic(Changed<>::call)},
      Subscription{VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, generic(Changed<const char*>::call)},
      Subscription{VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, generic(Changed<const char*>::call)},
      Subscription{VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, generic(Changed<int, const char*>::call)},
      Subscription{VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, generic(Changed<const char*, int, int>::call)},
      Subscription{VIR_DOMAIN_EVENT_ID_DISK_CHANGE,
                   generic(Changed<const char*, const char*, const char*, int>::call)},
  };
  for (const Subscription& subscription : wanted) {
    auto context = std::make_unique<Events>(events);
    const int id = virConnectDomainEventRegisterAny(connection_, nullptr, subscription.event,
                                                    subscription.callback, context.get(), free_events);
    if (id >= 0) {
      (void)context.release();
      subscriptions_.push_back(id);
    } else if (subscription.event == VIR_DOMAIN_EVENT_ID_LIFECYCLE) {
      return core::fail(last_error("lifecycle events"));
    }  // the relist makes up for others that an old libvirt does not have
  }
  return {};
}

Connection::~Connection() {
  if (connection_ == nullptr) return;
  auto close = [connection = connection_, subscriptions = std::move(subscriptions_),
                until_closed = std::move(options_.until_closed)] {
    for (const int id : subscriptions) virConnectDomainEventDeregisterAny(connection, id);
    virConnectUnregisterCloseCallback(connection, on_close);
    virConnectClose(connection);
  };
  try {
    std::thread(std::move(close)).detach();
  } catch (const std::system_error&) {  // no thread to be had: the connection leaks, nothing blocks
  }
}

core::Result<std::string> Connection::describe() const {
  unsigned long library = 0;
  unsigned long hypervisor = 0;
  if (virConnectGetLibVersion(connection_, &library) != 0 ||
      virConnectGetVersion(connection_, &hypervisor) != 0)
    return core::fail(last_error("version"));
  const char* const type = virConnectGetType(connection_);
  return fmt::format("{}: libvirt {}, {} {}", options_.uri, version_text(library),
                     type != nullptr ? type : "?", version_text(hypervisor));
}

core::Result<void> Connection::ping() const {
  unsigned long library = 0;
  if (virConnectGetLibVersion(connection_, &library) != 0) return core::fail(last_error("version"));
  return {};
}

core::Result<std::vector<ListedDomain>> Connection::running_domains() const {
  virDomainPtr* domains = nullptr;
  const int count = virConnectListAllDomains(connection_, &domains, VIR_CONNECT_LIST_DOMAINS_ACTIVE);
  if (count < 0) return core::fail(last_error("list of domains"));
  std::vector<ListedDomain> running;
  for (int i = 0; i < count; ++i) {
    const DomainHandle domain(domains[i]);
    running.push_back({uuid_of(domain.get()), virDomainGetName(domain.get())});
  }
  free(domains);
  return running;
}

core::Result<std::vector<BlockReading>> Connection::block_stats() const {
  virDomainStatsRecordPtr* records = nullptr;
  const auto asked = std::chrono::system_clock::now().time_since_epoch();
  const int count = virConnectGetAllDomainStats(
      connection_, VIR_DOMAIN_STATS_BLOCK, &records,
      VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT);
  if (count < 0) return core::fail(last_error("block statistics"));
  std::vector<BlockReading> readings;
  for (int i = 0; i < count; ++i) {
    std::vector<StatField> fields;
    for (int n = 0; n < records[i]->nparams; ++n) fields.push_back(field_of(records[i]->params[n]));
    readings.push_back({.uuid = uuid_of(records[i]->dom),
                        .domain_id = static_cast<std::int32_t>(virDomainGetID(records[i]->dom)),
                        .asked_unix_ns = static_cast<std::uint64_t>(std::chrono::nanoseconds(asked).count()),
                        .disks = guest_disks(fields)});
  }
  virDomainStatsRecordListFree(records);
  return readings;
}

core::Result<std::string> Connection::domain_xml(const core::VmUuid& uuid) const {
  const DomainHandle domain(virDomainLookupByUUIDString(connection_, uuid.value.c_str()));
  if (!domain) return core::fail(last_error("domain"));
  char* const text = virDomainGetXMLDesc(domain.get(), 0);
  if (text == nullptr) return core::fail(last_error("domain XML"));
  std::string xml = text;
  free(text);
  return xml;
}

core::Result<std::int32_t> Connection::domain_id(const core::VmUuid& uuid) const {
  const DomainHandle domain(virDomainLookupByUUIDString(connection_, uuid.value.c_str()));
  if (!domain) return core::fail(last_error("domain"));
  return static_cast<std::int32_t>(virDomainGetID(domain.get()));
}

}  // namespace kvmscope::virt
