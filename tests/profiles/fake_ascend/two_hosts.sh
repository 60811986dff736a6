#!/bin/sh
# Two hosts with names, addresses (10.0.0.1 and 10.0.0.2) and a /tmp of their own, joined by a cable: namespaces.
# usage: KEEP="FOLDER …" unshare -Urnm sh two_hosts.sh COMMAND0 [COMMAND1]
# Each command is a shell line, run on its host; folders of KEEP are seen by both. Exit code: of a command that failed.
set -eu
for number in 0 1; do
    unshare -n -u -m sleep 600 &
    eval "host$number=$!"
done
trap 'kill $host0 $host1' EXIT
outer=$(readlink /proc/self/ns/mnt)
for pid in $host0 $host1; do
    while [ "$(readlink /proc/$pid/ns/mnt)" = "$outer" ]; do sleep 0.05; done
done
ip link add cable netns $host0 type veth peer name cable netns $host1
for number in 0 1; do
    eval "pid=\$host$number"
    nsenter -t "$pid" -n -u -m sh -euc "
        hostname fake-worker-$number; ip link set lo up; ip link set cable up
        ip addr add 10.0.0.$((number + 1))/24 dev cable
        mount -t tmpfs none /mnt
        for folder in ${KEEP:-}; do mkdir -p /mnt\$folder; mount --bind \$folder /mnt\$folder; done
        mkdir -p /mnt/tmp; chmod 1777 /mnt/tmp; mount --rbind /mnt/tmp /tmp"
done
nsenter -t "$host0" -n -u -m sh -c "$1" & first=$!
code=0
if [ $# -gt 1 ]; then nsenter -t "$host1" -n -u -m sh -c "$2" || code=$?; fi
wait $first || code=$?
exit $code
