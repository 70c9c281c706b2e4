// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>

#include "hostd/core/result.h"
#include "hostd/core/unique_fd.h"

namespace kvmscope::bpf {

/// One ring buffer, read on the executor's thread as records come. Its owner may drop it at any time, in the
/// callback too.
class Ring {
 public:
  using Callback = std::function<void(std::span<const std::byte>)>;
  static core::Result<Ring> open(const boost::asio::any_io_executor& executor, std::uint32_t bytes,
                                 Callback on_record);
  Ring(Ring&&) noexcept;
  Ring& operator=(Ring&&) noexcept;
  ~Ring();

  int map_fd() const;

 private:
  struct State;
  explicit Ring(std::shared_ptr<State> state);
  void stop();
  std::shared_ptr<State> state_;
};

}  // namespace kvmscope::bpf
