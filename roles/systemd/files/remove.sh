#!/bin/sh
# Stop the services and take their units away. The target goes last: while it is there, a removal
# that was cut short is done again.
set -eu
cd /etc/systemd/system

systemctl --quiet disable --now deepseek-r1.target
rm -f deepseek-r1-redis.service deepseek-r1-engine.service deepseek-r1-gateway.service
systemctl daemon-reload
systemctl reset-failed 'deepseek-r1-*'
rm deepseek-r1.target
