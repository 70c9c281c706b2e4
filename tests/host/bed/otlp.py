# SPDX-License-Identifier: Apache-2.0
"""What was exported, judged by the official OTLP messages, with the rules that every series must keep."""

import json
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, DataPointFlags

from .shell import wait_for

OPERATIONS = "kvmscope.vm.disk.storage.operations"
IO = "kvmscope.vm.disk.storage.io"
DURATION = "kvmscope.vm.disk.storage.duration"
QUEUE_DURATION = "kvmscope.vm.disk.storage.queue.duration"
ERRORS = "kvmscope.vm.disk.storage.errors"


@dataclass
class Histogram:
    """An exponential histogram: buckets maps an absolute index to its count."""
    scale: int = 0
    count: int = 0
    sum: float = 0.0
    zero_count: int = 0
    buckets: dict = field(default_factory=dict)

    @staticmethod
    def of(point):
        buckets = {point.positive.offset + i: n for i, n in enumerate(point.positive.bucket_counts) if n}
        return Histogram(point.scale, point.count, point.sum, point.zero_count, buckets)

    def _combine(self, other, sign):
        assert not other.buckets or not self.buckets or self.scale == other.scale
        buckets = dict(self.buckets)
        for index, count in other.buckets.items():
            buckets[index] = buckets.get(index, 0) + sign * count
        return Histogram(other.scale if other.buckets else self.scale, self.count + sign * other.count,
                         self.sum + sign * other.sum, self.zero_count + sign * other.zero_count,
                         {i: n for i, n in buckets.items() if n})

    def __add__(self, other):
        return self._combine(other, 1)

    def __sub__(self, other):
        return self._combine(other, -1)

    def bounds(self, index):
        """(lower, upper] of a bucket, in seconds."""
        base = 2.0 ** (2.0 ** -self.scale)
        return base ** index, base ** (index + 1)

    def count_between(self, low, high):
        """How many lie in buckets that overlap [low, high]."""
        return sum(n for i, n in self.buckets.items() if self.bounds(i)[1] >= low and self.bounds(i)[0] <= high)


def plain(value):
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None


def attributes(pairs):
    return {pair.key: plain(pair.value) for pair in pairs}


@dataclass
class Series:
    """All that was seen of one series of one resource."""
    resource: dict
    metric: str
    attrs: dict
    unit: str = ""
    kind: str = ""
    points: dict = field(default_factory=dict)  # time -> value
    starts: dict = field(default_factory=dict)  # start -> newest value since then
    closed: bool = False

    @property
    def last(self):
        """Newest value; the sum of the newest of each sequence where the series was reset."""
        if self.kind == "gauge":
            return self.points[max(self.points)]
        first, *others = self.starts.values()
        return sum(others, first)


def _points(metric):
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    if kind != "gauge":
        assert data.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE, metric.name
    return kind, data.data_points


class Export:
    """What one stream carried: requests in order."""

    def __init__(self):
        self.series = {}
        self.logs = []

    def add(self, request):
        if isinstance(request, ExportLogsServiceRequest):
            self._add_logs(request)
            return
        for resource_metrics in request.resource_metrics:
            resource = attributes(resource_metrics.resource.attributes)
            for scope_metrics in resource_metrics.scope_metrics:
                for metric in scope_metrics.metrics:
                    self._add_metric(resource, metric)

    def _add_logs(self, request):
        for resource_logs in request.resource_logs:
            resource = attributes(resource_logs.resource.attributes)
            for scope_logs in resource_logs.scope_logs:
                self.logs += [(resource, record) for record in scope_logs.log_records]

    def _add_metric(self, resource, metric):
        kind, points = _points(metric)
        for point in points:
            attrs = attributes(point.attributes)
            key = (resource.get("service.name"), resource.get("service.instance.id"),
                   resource.get("cloud.account.id", ""), metric.name, frozenset(attrs.items()))
            series = self.series.setdefault(key, Series(resource, metric.name, attrs, metric.unit, kind))
            series.resource = resource  # a VM that got its name later: the newest description counts
            if point.flags & DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK:
                series.closed = True
                continue
            if kind == "exponential_histogram":
                value = Histogram.of(point)
                assert value.count == value.zero_count + sum(value.buckets.values()), (metric.name, attrs)
            else:
                value = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
            self._check(series, kind, point, value)
            series.points[point.time_unix_nano] = value

    @staticmethod
    def _check(series, kind, point, value):
        """Cumulative values never fall; a new start is a true reset, after all that was before it."""
        if kind == "gauge":
            return
        where = (series.metric, series.attrs, series.resource)
        start, newest = point.start_time_unix_nano, max(series.points, default=0)
        assert 0 < start < point.time_unix_nano, ("times", where)
        assert point.time_unix_nano >= newest, ("out of order", where)
        if start in series.starts:
            assert start == max(series.starts), ("back to an earlier start", where)
            last = series.starts[start]
            fell = any(value.buckets.get(i, 0) < n for i, n in last.buckets.items()) if isinstance(
                value, Histogram) else value < last
            assert not fell, ("fell", where, last, value)
        else:
            assert start >= newest, ("a reset into the past", where)
        series.starts[start] = value

    def copy(self):
        export = Export()
        export.series = {key: replace(s, points=dict(s.points), starts=dict(s.starts)) for key, s in self.series.items()}
        export.logs = list(self.logs)
        return export

    def newest(self):
        return max((max(s.points) for s in self.series.values() if s.points), default=0)

    def find(self, metric, vm=None, tenant=None, **labels):
        """Series of a metric; labels by their last word: direction="read", device="vda"."""
        wanted = {{"direction": "disk.io.direction", "device": "disk.device"}.get(k, k): v for k, v in labels.items()}
        return [s for s in self.series.values()
                if s.metric == metric and s.points and (vm is None or s.resource.get("vm.id") == vm)
                and (tenant is None or s.resource.get("cloud.account.id", "") == tenant)
                and all(s.attrs.get(k) == v for k, v in wanted.items())]

    def total(self, metric, vm=None, tenant=None, **labels):
        """Sum of the last values: over all epochs of the VM, and over all labels that are not given."""
        found = [s.last for s in self.find(metric, vm, tenant, **labels)]
        if found and isinstance(found[0], Histogram):
            return sum(found[1:], found[0])
        return sum(found)

    def histogram(self, metric, vm=None, tenant=None, **labels):
        return self.total(metric, vm, tenant, **labels) or Histogram()

    def vm_totals(self):
        """{(tenant, vm, metric, labels): value} of all counters of VMs that are not 0."""
        totals = defaultdict(int)
        for s in self.series.values():
            if s.points and s.metric in (OPERATIONS, IO, ERRORS) and s.last:
                totals[(s.resource.get("cloud.account.id", ""), s.resource.get("vm.id", ""), s.metric,
                        tuple(sorted(s.attrs.items())))] += s.last
        return dict(totals)

    def tenants(self):
        return {s.resource.get("cloud.account.id", "") for s in self.series.values()}

_TIME = re.compile(r'"timeUnixNano":\s*"?(\d+)')


def parse_line(line):
    document = json.loads(line)
    request = ExportLogsServiceRequest() if "resourceLogs" in document else ExportMetricsServiceRequest()
    return json_format.ParseDict(document, request)


def read_files(path):
    """All lines of a file exporter's file and its rotated predecessors, oldest first."""
    path = Path(path)
    rotated = sorted(path.parent.glob(path.name + ".*"), key=lambda p: -int(p.suffix[1:]))
    text = "".join(p.read_text(encoding="utf-8") for p in [*rotated, path] if p.exists())
    return [line for line in text[:text.rfind("\n") + 1].splitlines() if line]


_read = {}  # path -> (lines, what they say)


def export_of(path):
    """All of it; what was read before is not parsed again."""
    lines = read_files(path)
    known, export = _read.get(path, ([], Export()))
    if lines[:len(known)] != known:
        known, export = [], Export()
    for line in lines[len(known):]:
        export.add(parse_line(line))
    _read[path] = (lines, export)
    return export.copy()


def settled(path, timeout=30):
    """The export once it holds a reading that was begun after this call."""
    asked = time.time_ns()

    def newer():
        # Reading all of it takes long: not before its end looks worth it.
        times = (int(found) for line in read_files(path)[-8:] for found in _TIME.findall(line))
        if max(times, default=0) <= asked:
            return None
        export = export_of(path)
        return export if export.newest() > asked else None

    return wait_for(f"a reading in {path}", newer, timeout, 0.2)


def difference(before, after, metric, **selection):
    """What a counter or histogram grew by between two exports."""
    later, earlier = after.total(metric, **selection), before.total(metric, **selection)
    if isinstance(later, Histogram):
        return later - earlier if isinstance(earlier, Histogram) else later
    return later - earlier


def unseen(before, after):
    """Requests of any VM whose completion this kernel showed to no program: counted, but without their delays."""
    return difference(before, after, "kvmscope.kernel.events", event="stale")


def grown(before, after):
    """What changed between two vm_totals()."""
    keys = before.keys() | after.keys()
    changes = {key: after.get(key, 0) - before.get(key, 0) for key in keys}
    return {key: change for key, change in changes.items() if change}


def expected(domain, tenant, device, **by_direction):
    """vm_totals() of one disk: expected(..., read=(operations, bytes), flush=(3, 0))."""
    result = {}
    for direction, (operations, size_bytes) in by_direction.items():
        labels = (("disk.device", device), ("disk.io.direction", direction))
        for metric, value in ((OPERATIONS, operations), (IO, size_bytes)):
            if value:
                result[(tenant, domain.uuid, metric, labels)] = value
    return result
