// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

namespace kvmscope::exporters {

/// The memory that all streams' queues may take together. Beyond it the longest queue lets go of what it can
/// spare, as long as it has more than its fair share: nobody pays for another's backlog.
/// Threads: the loop's only.
class QueueBudget {
 public:
  /// A queue that takes part.
  class Member {
   public:
    virtual std::size_t queued_bytes() const = 0;
    /// Lets go of the one thing that is missed least; false if there is nothing that may go for others' sake.
    virtual bool shed() = 0;

   protected:
    ~Member() = default;
  };

  explicit QueueBudget(std::size_t bytes) : bytes_(bytes) {}

  void join(Member& member) { members_.push_back(&member); }
  void leave(Member& member) { std::erase(members_, &member); }
  /// To be called when a queue has grown.
  void enforce();

 private:
  const std::size_t bytes_;
  std::vector<Member*> members_;
};

}  // namespace kvmscope::exporters
