// SPDX-License-Identifier: Apache-2.0
#include "virt/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>

#include "hostd/core/unique_fd.h"

namespace kvmscope::virt {
namespace {
constexpr std::size_t kMaxSize = 4U << 20;
}

core::Result<std::string> read_file(const std::string& path) {
  const core::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return core::fail(core::Error::from_errno(path));
  std::string content;
  std::array<char, 16384> chunk;
  for (;;) {
    const ssize_t got = ::read(fd.get(), chunk.data(), chunk.size());
    if (got < 0) {
      if (errno == EINTR) continue;
      return core::fail(core::Error::from_errno(path));
    }
    if (got == 0) return content;
    content.append(chunk.data(), static_cast<std::size_t>(got));
    if (content.size() > kMaxSize)
      return core::fail(core::ErrorCode::resource_exhausted, path + ": over 4 MiB");
  }
}

}  // namespace kvmscope::virt
