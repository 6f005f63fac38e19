#!/bin/sh
# Let packages start their services again: end_policy.sh POLICY. The policy names the modules that
# were new to an nginx of somebody else's; their packages linked them into its configuration.
set -eu

links=$(sed -n 's/^# not for the nginx here: //p' "$1")
for link in $links; do
  rm -f "/etc/nginx/modules-enabled/$link"
done
rm -f "$1"
