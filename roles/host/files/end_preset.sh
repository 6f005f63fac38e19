#!/bin/sh
# end_preset.sh PRESET: the units that the preset names do not start at boot. A package obeys the
# preset itself, but not one that was removed before and not purged, and none on Ubuntu 22.04.
set -eu

units=$(sed -n 's/^disable //p' "$1")
for unit in $units; do
  if systemctl is-enabled --quiet "$unit" 2>/dev/null; then
    systemctl disable --quiet "$unit"
  fi
done
rm "$1"
