#!/usr/bin/env bash
# Install the programs that tests run on this machine (Debian and Ubuntu, as root): SLURM and munge, of which they start
# a real cluster, ffmpeg, and chromium, which looks at pages as a reader would (Ubuntu has it as a snap alone: it is
# playwright's own there). Elsewhere it says why it does nothing; the tests are then skipped, or fail where CI is set.
set -euo pipefail

there() { # whether all of these programs are: command -v alone is content with any
    local program
    for program; do
        command -v "$program" >/dev/null 2>&1 || return 1
    done
}

# A browser of playwright's own, for this user; `--with-deps`: and what it needs of the system, as root.
own="${PLAYWRIGHT_BROWSERS_PATH:-$HOME/.cache/ms-playwright}"
browser() {
    local install=("${VENV:-.venv}/bin/playwright" install "$@" chromium)
    "${install[@]}" >/dev/null 2>&1 || echo "Not installed: chromium (${install[*]}): its tests will be skipped." >&2
}

packages=()
there slurmctld slurmd srun munged || packages+=(slurm-wlm munge)
there ffmpeg || packages+=(ffmpeg)
there chromium || compgen -G "$own/chromium-*" >/dev/null || packages+=(chromium)
if [ ${#packages[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! there apt-get; then
    if [ "${packages[-1]}" = chromium ]; then
        browser
        unset 'packages[-1]'
    fi
    if [ ${#packages[@]} -gt 0 ]; then
        echo "Not installed: ${packages[*]}. Installing them needs root and apt-get: their tests will be skipped." >&2
    fi
    exit 0
fi
echo "Installing ${packages[*]} ..."
export DEBIAN_FRONTEND=noninteractive
# The packages' own services stay off: the tests start daemons of their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
# (Of what it only knows by name, as Ubuntu of chromium, apt has no candidate.)
if [ "${packages[-1]}" = chromium ] && ! apt-cache policy chromium | grep -q 'Candidate: [^(]'; then
    unset 'packages[-1]'
    browser --with-deps
fi
if [ ${#packages[@]} -gt 0 ]; then
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
