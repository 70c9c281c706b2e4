// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/server.h>
#include <grpcpp/server_context.h>

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "exporters/proto/logs_service.grpc.pb.h"
#include "exporters/proto/metrics_service.grpc.pb.h"
#include "exporters/stream.h"

namespace kvmscope::exporters {

/// A directory of its own that is gone afterwards.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  /// Writes a file of mode 0600, in place.
  std::string write(const std::string& name, const std::string& content) const;

 private:
  std::filesystem::path path_;
};

std::string slurp(const std::string& path);

/// A certificate authority made by openssl, and what it issues, as files in a directory.
class Authority {
 public:
  Authority(const TempDir& dir, const std::string& name);
  struct Pair {
    std::string cert_file;
    std::string key_file;
  };
  /// For server names `localhost` and `collector.example` and the address 127.0.0.1, or a client.
  Pair issue(const std::string& name) const;
  const std::string& file() const { return file_; }

 private:
  const TempDir& dir_;
  std::string key_;
  std::string file_;
};

/// What the receiver saw of one request.
struct Seen {
  Signal signal = Signal::metrics;
  std::vector<std::string> values;  ///< `vm.id` of each resource
  std::multimap<std::string, std::string> metadata;
  std::string peer;
};

/// A real gRPC server on loopback that answers as it is told.
class Receiver {
 public:
  struct Options {
    std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials();
    int port = 0;  ///< 0: any
  };
  struct Answer {
    grpc::Status status;
    std::int64_t rejected = 0;
    std::string message;
    std::chrono::milliseconds delay{0};  ///< before it answers, unless the call is cancelled first
  };
  using Behaviour = std::function<Answer(const Seen&)>;

  Receiver() : Receiver(Options{}) {}
  explicit Receiver(const Options& options);
  ~Receiver();

  /// Called by the server's threads, one at a time.
  void behave(Behaviour behaviour);
  std::vector<Seen> seen() const;
  std::set<std::string> peers() const;
  std::string endpoint() const { return "127.0.0.1:" + std::to_string(port_); }
  int port() const { return port_; }

 private:
  struct Metrics;
  struct Logs;
  Answer handle(grpc::ServerContext& context, Seen seen);

  mutable std::mutex mutex_;
  Behaviour behaviour_;
  std::vector<Seen> seen_;
  std::atomic<bool> stopping_ = false;
  int port_ = 0;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<Logs> logs_;
  std::unique_ptr<grpc::Server> server_;
};

std::shared_ptr<grpc::ServerCredentials> tls(const Authority::Pair& pair,
                                             const std::string& client_ca_file = {});
/// UNAUTHENTICATED unless the call carries this bearer token.
Receiver::Behaviour demand(const std::string& token);

/// Runs the loop until the condition holds; false after ten seconds.
bool run_until(boost::asio::io_context& io, const std::function<bool()>& condition,
               std::chrono::milliseconds limit = std::chrono::seconds(10));
void run_for(boost::asio::io_context& io, std::chrono::milliseconds time);

/// A batch of one resource with vm.id = `value` and two points (records).
Batch batch(const std::string& tenant, const std::string& value, Signal signal = Signal::metrics,
            std::size_t padding = 0);

}  // namespace kvmscope::exporters
