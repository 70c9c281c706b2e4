// SPDX-License-Identifier: Apache-2.0
#include "bpf/rings.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/system/error_code.hpp>
#include <cerrno>
#include <utility>

namespace kvmscope::bpf {
namespace {

using core::Error;
using core::fail;
using core::Result;
using core::UniqueFd;

/// Records taken at one wake-up: a noisy tenant's ring does not hold up the loop.
constexpr int kBatch = 256;

struct RingBufferDeleter {
  void operator()(ring_buffer* manager) const { ring_buffer__free(manager); }
};

}  // namespace

struct Ring::State : std::enable_shared_from_this<Ring::State> {
  State(const boost::asio::any_io_executor& executor, Callback callback)
      : descriptor(executor), on_record(std::move(callback)) {}

  boost::asio::posix::stream_descriptor descriptor;
  Callback on_record;
  UniqueFd map;
  std::unique_ptr<ring_buffer, RingBufferDeleter> manager;
  int taken = 0;
  bool stopped = false;

  static int take(void* context, void* data, std::size_t size) noexcept {
    auto* state = static_cast<State*>(context);
    state->on_record({static_cast<const std::byte*>(data), size});
    return state->stopped || ++state->taken >= kBatch ? -ECANCELED : 0;
  }

  void wait() {
    descriptor.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                          [self = shared_from_this()](const boost::system::error_code& error) {
                            if (error || self->stopped) return;
                            self->taken = 0;
                            // ECANCELED is ours: the batch is full, and the wait finds the rest at once.
                            ring_buffer__consume(self->manager.get());
                            if (!self->stopped) self->wait();
                          });
  }
};

Result<Ring> Ring::open(const boost::asio::any_io_executor& executor, std::uint32_t bytes,
                        Callback on_record) {
  const auto page = static_cast<std::uint32_t>(::sysconf(_SC_PAGESIZE));
  const std::uint32_t size = std::bit_ceil(std::clamp(bytes, page, std::uint32_t{1} << 28U));
  auto state = std::make_shared<State>(executor, std::move(on_record));
  state->map = UniqueFd(bpf_map_create(BPF_MAP_TYPE_RINGBUF, "tenant_ring", 0, 0, size, nullptr));
  if (!state->map) return fail(Error::from_errno("create a ring of " + std::to_string(size) + " bytes"));
  state->manager.reset(ring_buffer__new(state->map.get(), &State::take, state.get(), nullptr));
  if (!state->manager) return fail(Error::from_errno("map a ring"));
  // The descriptor closes what it holds, and so does the manager.
  UniqueFd epoll(::fcntl(ring_buffer__epoll_fd(state->manager.get()), F_DUPFD_CLOEXEC, 0));
  if (!epoll) return fail(Error::from_errno("duplicate a ring's descriptor"));
  boost::system::error_code error;
  error = state->descriptor.assign(epoll.get(), error);
  if (error) return fail(core::ErrorCode::system, "wait for a ring: " + error.message());
  (void)epoll.release();
  state->wait();
  return Ring(std::move(state));
}

Ring::Ring(std::shared_ptr<State> state) : state_(std::move(state)) {}
Ring::Ring(Ring&&) noexcept = default;
Ring& Ring::operator=(Ring&& other) noexcept {
  stop();
  state_ = std::move(other.state_);
  return *this;
}
Ring::~Ring() {
  stop();
}

void Ring::stop() {
  if (!state_) return;
  state_->stopped = true;
  boost::system::error_code ignored;
  ignored = state_->descriptor.close(ignored);
}

int Ring::map_fd() const {
  return state_->map.get();
}

}  // namespace kvmscope::bpf
