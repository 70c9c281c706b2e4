# SPDX-License-Identifier: Apache-2.0
"""A TLS gRPC receiver on the official OTLP service stubs: it demands each tenant's own token, and misbehaves on order."""

import threading
import time
from concurrent import futures
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc

from .otlp import Export
from .shell import run


def make_certificates(folder, name="localhost"):
    """A CA and a server certificate; returns (ca, certificate, key) as paths."""
    folder.mkdir(exist_ok=True)
    ca, ca_key, key, request, certificate = (folder / n for n in ("ca.pem", "ca.key", "s.key", "s.csr", "s.pem"))
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    run("openssl", "req", "-x509", *curve, "-keyout", ca_key, "-out", ca, "-days", "2", "-subj", "/CN=kvmscope test CA",
        "-addext", "basicConstraints=critical,CA:TRUE")
    run("openssl", "req", *curve, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
    extensions = folder / "s.ext"
    extensions.write_text(f"subjectAltName=DNS:{name},IP:127.0.0.1\nbasicConstraints=CA:FALSE\n", encoding="ascii")
    run("openssl", "x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-out", certificate,
        "-days", "2", "-extfile", extensions)
    return ca, certificate, key


@dataclass
class Arrival:
    at: float  # monotonic
    tenant_header: str
    token: str
    peer: str
    request: object


@dataclass
class Tenant:
    """How the receiver treats one tenant, and what it got from it."""
    token: str
    hang: threading.Event = field(default_factory=threading.Event)
    status: object = None  # a grpc.StatusCode to answer with
    arrivals: list = field(default_factory=list)

    def export(self):
        result = Export()
        for arrival in list(self.arrivals):
            result.add(arrival.request)
        return result


class Receiver:
    """tenants: {name: token}. Refused requests are kept in `refused` as (x-tenant-id, token)."""

    def __init__(self, resources, tenants, certificates=None):
        self.ca, certificate, key = certificates or make_certificates(resources.folder / "certificates")
        self.tenants = {name: Tenant(token) for name, token in tenants.items()}
        self.refused = []
        self._stopping = threading.Event()
        # One thread for each request that may hang, and more.
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=64))
        receiver = self

        class Metrics(metrics_grpc.MetricsServiceServicer):
            def Export(self, request, context):
                return receiver._take(request, context, metrics.ExportMetricsServiceResponse())

        class Logs(logs_grpc.LogsServiceServicer):
            def Export(self, request, context):
                return receiver._take(request, context, logs.ExportLogsServiceResponse())

        metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), self._server)
        logs_grpc.add_LogsServiceServicer_to_server(Logs(), self._server)
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.endpoint = f"localhost:{self.port}"
        self._server.start()
        resources.push(self.stop)

    def _take(self, request, context, answer):
        sent = dict(context.invocation_metadata())
        name = sent.get("x-tenant-id", "")
        authorization = sent.get("authorization", "")
        tenant = self.tenants.get(name)
        if tenant is None or authorization != f"Bearer {tenant.token}":
            self.refused.append((name, authorization))
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "not this tenant's token")
        if tenant.status is not None:
            context.abort(tenant.status, "as ordered")
        while tenant.hang.is_set() and context.is_active() and not self._stopping.wait(0.05):
            pass
        if not context.is_active():
            return answer
        tenant.arrivals.append(Arrival(time.monotonic(), name, authorization, context.peer(), request))
        return answer

    def stop(self):
        self._stopping.set()
        self._server.stop(1).wait()


def send(endpoint, ca, tenant, token, request=None, timeout=5):
    """What any official client would do; raises grpc.RpcError when refused."""
    credentials = grpc.ssl_channel_credentials(ca.read_bytes())
    with grpc.secure_channel(endpoint, credentials) as channel:
        stub = metrics_grpc.MetricsServiceStub(channel)
        return stub.Export(request or metrics.ExportMetricsServiceRequest(), timeout=timeout,
                           metadata=[("authorization", f"Bearer {token}"), ("x-tenant-id", tenant)])
