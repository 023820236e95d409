#!/bin/bash
# Run a command in the root of another Debian release, with that release's Slurm.
#
#   slurm/testbed/debian_root.sh RELEASE FOLDER COMMAND...
#
# debootstrap makes the root in FOLDER at the first use. The command sees this machine's own
# folders, but for those of the system: a Python environment works if its Python is not in /usr.
# Needs root. Nothing outside FOLDER changes.
set -eu -o pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 RELEASE FOLDER COMMAND..." >&2
    exit 2
fi
release=$1 root=$2
shift 2
if [ "$(id -u)" != 0 ] || ! command -v debootstrap > /dev/null; then
    echo "error: $0 needs root and debootstrap: apt-get install debootstrap" >&2
    exit 2
fi

if [ ! -e "$root/.ready" ]; then
    debootstrap --variant=minbase "$release" "$root" > /dev/null
    # No service starts when its package is installed.
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
    # The last line has what a Python built from source loads.
    DEBIAN_FRONTEND=noninteractive chroot "$root" sh -c 'apt-get update -qq && apt-get install \
        -y -qq --no-install-recommends slurm-wlm slurmdbd munge mariadb-server procps git g++ make \
        libbz2-1.0 libffi8 liblzma5 libreadline8 libsqlite3-0 libssl3'
    touch "$root/.ready"
fi

# The mounts end with the command.
exec unshare --mount bash -c '
root=$1
shift
# So that "/" of the command is a mount point: unshare --mount makes that private.
mount --bind "$root" "$root"
for folder in /*/; do
    case $folder in
        /bin/ | /sbin/ | /lib*/ | /usr/ | /etc/ | /var/ | /boot/) continue ;;
    esac
    mkdir -p "$root$folder"
    mount --rbind "$folder" "$root$folder"
done
cp /etc/hosts /etc/resolv.conf "$root/etc/"
exec chroot "$root" env --chdir="$PWD" "$@"' bash "$root" "$@"
