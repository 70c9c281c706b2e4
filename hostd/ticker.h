// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <utility>

namespace kvmscope::hostd {

/// Calls back every interval, without drift; an interval that was slept through is left out, not made up for.
class Ticker {
 public:
  Ticker(const boost::asio::any_io_executor& executor, std::chrono::steady_clock::duration interval,
         std::function<void()> tick)
      : timer_(executor), interval_(interval), tick_(std::move(tick)) {}

  void start() {
    next_ = std::chrono::steady_clock::now() + interval_;
    wait();
  }

 private:
  void wait() {
    timer_.expires_at(next_);
    timer_.async_wait([this](const boost::system::error_code& error) {
      if (error) return;  // destroyed
      const auto now = std::chrono::steady_clock::now();
      next_ += interval_;
      if (next_ <= now) next_ = now + interval_;
      tick_();
      wait();
    });
  }

  boost::asio::steady_timer timer_;
  std::chrono::steady_clock::duration interval_;
  std::function<void()> tick_;
  std::chrono::steady_clock::time_point next_;
};

}  // namespace kvmscope::hostd
