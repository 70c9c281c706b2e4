#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# run.sh TEST...: pytest with the host tests' own Python environment (./dev setup makes it).
set -eu
cd "$(dirname "$(readlink -f "$0")")"
venv=${KVMSCOPE_CACHE:-/var/cache/kvmscope}/venv-$(sha256sum <requirements.txt | cut -c1-16)
[ -f "$venv/complete" ] || { echo "no Python environment: run ./dev setup"; exit 1; }
exec "$venv/bin/python" -m pytest -p no:cacheprovider -rs --durations=0 --durations-min=1 --tb=short "$@"
