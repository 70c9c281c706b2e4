#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# build.sh CACHE: builds the OpenTelemetry Collector of collector.yaml into CACHE/collector-<hash>/otelcol.
# Exit 3: no Go that can build it on this machine. Nothing is done if it is there.
set -eu
cache=$1
manifest=$(dirname "$(readlink -f "$0")")/collector.yaml
version=$(sed -n 's/^  version: //p' "$manifest")
out=$cache/collector-$(sha256sum <"$manifest" | cut -c1-16)
[ -x "$out/otelcol" ] && exit 0
minor=$(go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
[ "${minor:-0}" -ge 25 ] || { echo "the Collector needs Go >= 1.25; found: $(go version 2>/dev/null || echo none)"; exit 3; }

work=$(mktemp -d "$cache/collector-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
export GOBIN="$work/bin" GOFLAGS=-buildvcs=false GOTOOLCHAIN=local CGO_ENABLED=0
go install "go.opentelemetry.io/collector/cmd/builder@v$version"
sed "/^dist:/a\\  output_path: $work/out" "$manifest" >"$work/manifest.yaml"
"$GOBIN/builder" --skip-strict-versioning --config "$work/manifest.yaml"
mkdir -p "$out"
mv "$work/out/otelcol-kvmscope-test" "$out/otelcol"
