#!/bin/sh
# Take the project deepseek-r1 out of Docker, by its labels, and its files off the host; print
# what was removed, nothing where nothing is left. Needs no file of the project to be there.
set -eu
folder=/etc/deepseek-r1/compose
command=/usr/local/bin/deepseek-r1
label=label=com.docker.compose.project=deepseek-r1

docker_answers() { docker version >/dev/null 2>&1; }

if command -v docker >/dev/null && [ -d "$folder" ] && ! docker_answers; then
  # Left alone, the containers would come back with Docker.
  if [ -d /run/systemd/system ]; then systemctl start docker; else service docker start; fi >&2
  timeout 60 sh -c 'until docker version >/dev/null 2>&1; do sleep 0.2; done' || {
    echo "Docker does not answer, so its containers cannot be removed; start it, then again." >&2
    exit 1
  }
fi

if command -v docker >/dev/null && docker_answers; then
  containers=$(docker ps --all --quiet --filter "$label")
  # shellcheck disable=SC2086 # lists of ids
  [ -z "$containers" ] || { docker stop --time 30 $containers && docker rm --force $containers; }
  for network in $(docker network ls --quiet --filter "$label"); do
    docker network rm "$network"
  done
  for volume in $(docker volume ls --quiet --filter "$label"); do
    docker volume rm "$volume"
  done
  for image in $(docker image ls --format '{{.Repository}}:{{.Tag}}' deepseek-r1/runtime) \
      $(cat "$folder/pulled" 2>/dev/null); do
    # Another project may use a pulled image, too; then it stays.
    docker image rm "$image" 2>/dev/null || true
  done
fi

[ ! -d "$folder" ] || { rm -rf "$folder" && echo "$folder"; }
if [ -e "$command" ] && [ "$(sed -n 2p "$command")" = "# manager: compose" ]; then
  rm -f "$command" && echo "$command"
fi
