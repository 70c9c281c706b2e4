// SPDX-License-Identifier: Apache-2.0
#include "exporters/file_stream.h"

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <mutex>

#include "exporters/line_file.h"
#include "exporters/otlp_json.h"

namespace kvmscope::exporters {
namespace {

/// How long a destroyed stream waits for a write that is under way; a hanging disk then keeps the thread
/// alone.
constexpr std::chrono::seconds kGrace{1};

Attempt write(LineFile& file, Signal signal, const std::string& request) {
  const auto line = otlp_json_line(signal, request);
  if (!line) return {Attempt::Verdict::refused, line.error().message(), 0, std::nullopt};
  if (auto written = file.append(*line); !written) {
    return {Attempt::Verdict::retry, written.error().message(), 0, std::nullopt};
  }
  return {};
}

}  // namespace

/// Shared by the stream and its thread; outlives the stream if the disk hangs.
struct FileStream::Writer {
  struct Job {
    Signal signal;
    Bytes request;
  };

  explicit Writer(const StreamConfig& config) : file(config.path, config.rotate_bytes, config.keep_files) {}

  template <typename Report>
  void run(const Report& report) {
    std::unique_lock lock(mutex);
    while (true) {
      changed.wait(lock, [this] { return stop || !jobs.empty(); });
      if (stop) break;
      const Job job = std::move(jobs.front());
      jobs.pop_front();
      lock.unlock();
      report(job.signal, write(file, job.signal, *job.request));
      lock.lock();
    }
    ended = true;
    changed.notify_all();
  }

  LineFile file;  ///< the thread's own
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Job> jobs;
  bool stop = false;
  bool ended = false;
};

FileStream::FileStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config)
    : QueuedStream(std::move(executor), std::move(tenant), std::move(config)),
      writer_(std::make_shared<Writer>(this->config())) {}

FileStream::~FileStream() {
  if (!thread_.joinable()) return;
  std::unique_lock lock(writer_->mutex);
  writer_->stop = true;
  writer_->changed.notify_all();
  const bool ended = writer_->changed.wait_for(lock, kGrace, [this] { return writer_->ended; });
  lock.unlock();
  if (ended) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

void FileStream::start(Signal signal, const Bytes& request) {
  {
    const std::lock_guard lock(writer_->mutex);
    writer_->jobs.push_back({signal, request});
  }
  writer_->changed.notify_all();
  if (thread_.joinable()) return;
  thread_ = std::thread([this, writer = writer_, box = mailbox()] {
    ::pthread_setname_np(::pthread_self(), "kvmscope-file");
    writer->run([this, &box](Signal done, Attempt attempt) {
      box->post([this, done, attempt = std::move(attempt)] { finished(done, attempt); });
    });
  });
}

}  // namespace kvmscope::exporters
