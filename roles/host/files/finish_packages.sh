#!/bin/sh
# Finish what a killed run left of a package installation; print nothing where all is whole.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

[ -n "$(dpkg --audit)" ] || exit 0

get() {
  apt-get --yes --no-install-recommends --option=DPkg::Lock::Timeout=300 \
    --option=Dpkg::Options::=--force-confdef --option=Dpkg::Options::=--force-confold "$@"
}

# What lacks a dependency stays unconfigured here, and apt-get refuses to work before this was
# tried. Another program may hold dpkg's lock for a while.
for _ in $(seq 60); do
  said=$(dpkg --configure -a --force-confdef --force-confold 2>&1) && break
  case $said in *lock*) sleep 5 ;; *) break ;; esac
done
printf '%s\n' "$said"
get update

# What is torn first, without regard to dependencies: others may wait for it, and it for others.
torn=$(dpkg-query --show --showformat '${db:Status-Eflag} ${Package}\n' | sed -n 's/^reinstreq //p')
if [ -n "$torn" ]; then
  folder=$(mktemp --directory)
  trap 'rm -rf "$folder"' EXIT
  cd "$folder"
  # shellcheck disable=SC2086 # a list of names
  get --option=APT::Sandbox::User=root download $torn
  dpkg --unpack ./*.deb
  cd /
fi
get --fix-broken install
