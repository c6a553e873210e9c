#!/usr/bin/env bash
# Lays out Debian sid with Prosody 13 and ejabberd 26 in a folder, for the tests that need the newest servers.
# Usage: tests/peers/sid.sh [DIR]     default: $INVITED_TEST_SID, else /var/cache/invited-test/sid
# Needs root, debootstrap and about 1 GB. A folder that is already whole is kept, so a second run costs nothing.
set -euo pipefail
dir=${1:-${INVITED_TEST_SID:-/var/cache/invited-test/sid}}

whole() {
    [ -x "$dir/usr/bin/prosody" ] && [ -x "$dir/usr/sbin/ejabberdctl" ] && [ -e "$dir/.invited-whole" ]
}
if whole; then
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "sid.sh: needs root, for chroot" >&2
    exit 1
fi

# The mirror that this machine's own apt uses for its main archive.
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m 1 '/debian/\?$')

# A half-made folder from an interrupted run is of no use.
if mountpoint -q "$dir/proc"; then umount "$dir/proc"; fi
rm -rf "$dir"
mkdir -p "$dir"

# debootstrap takes only the first of alternative dependencies and then reports unconfigured packages: apt mends that.
packages=ejabberd,prosody,prosody-modules,lua-dbi-sqlite3,erlang-p1-sqlite3,ca-certificates
debootstrap --variant=minbase --include="$packages" sid "$dir" "$mirror" || true
mount -t proc proc "$dir/proc"
trap 'umount "$dir/proc"' EXIT
for node in "null 1 3" "zero 1 5" "random 1 8" "urandom 1 9"; do
    set -- $node
    [ -e "$dir/dev/$1" ] || mknod -m 666 "$dir/dev/$1" c "$2" "$3"
done
# No service is started inside the folder.
printf '#!/bin/sh\nexit 101\n' > "$dir/usr/sbin/policy-rc.d"
chmod 755 "$dir/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive
# A mirror that lags behind serves a release file that has run out; for a test folder its signature is enough.
echo 'Acquire::Check-Valid-Until "false"; APT::Sandbox::User "root";' > "$dir/etc/apt/apt.conf.d/90invited"
chroot "$dir" apt-get update
chroot "$dir" apt-get -f install -y --no-install-recommends
chroot "$dir" apt-get install -y --no-install-recommends ${packages//,/ }
chroot "$dir" dpkg-query --show prosody ejabberd
touch "$dir/.invited-whole"
