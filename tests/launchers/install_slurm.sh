#!/usr/bin/env bash
# Install SLURM and munge for the tests that start a real cluster on this machine (Debian and Ubuntu, as root).
# Elsewhere it says why it does nothing; the tests are then skipped, or fail where CI is set.
set -euo pipefail

if command -v slurmctld slurmd srun munged >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "SLURM is not installed, and installing it needs root and apt-get: its tests will be skipped." >&2
    exit 0
fi
echo "Installing slurm-wlm and munge ..."
export DEBIAN_FRONTEND=noninteractive
# The packages' own services stay off: the tests start daemons of their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
