#!/usr/bin/env bash
# Trains over two hosts, and cuts the cable between them: two network namespaces, joined by a third that routes. As root, in three minutes.
#
#   scripts/processes/hosts.sh
#
#   LORAXS    the binary [default: target/release/loraxs]
#
# Each host has a name that its own hosts file gives as 127.0.1.1, as Debian's does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
LORAXS=$(realpath "${LORAXS:-target/release/loraxs}")
if [ "$(id -u)" != 0 ]; then echo "skipped: network namespaces need root" >&2; exit 0; fi
work=$(mktemp -d)
hosts=("lx$$a" "lx$$b") router=lx$$r
timeout=8 steps=600 pids=()

clean() {
    kill -KILL "${pids[@]}" 2>/dev/null || true
    for host in "${hosts[@]}" "$router"; do ip netns del "$host" 2>/dev/null || true; rm -rf "/etc/netns/$host"; done
    rm -rf "$work"
}
trap clean EXIT
trap 'echo "FAILED at line $LINENO"' ERR

say() { echo "$(date +%T) $*"; }
fail() { say "FAILED: $*"; tail -n 5 "$work"/*.log; exit 1; }

ip netns add "$router"
ip netns exec "$router" sysctl -qw net.ipv4.ip_forward=1
for i in 0 1; do
    host=${hosts[i]} other=$((1 - i))
    mkdir -p "/etc/netns/$host"
    printf '127.0.0.1 localhost\n127.0.1.1 host%d\n10.77.%d.2 host%d\n' $i $other $other > "/etc/netns/$host/hosts"
    # c10d looks up the names of addresses, and no server can be reached from here.
    echo 'nameserver 127.0.0.1' > "/etc/netns/$host/resolv.conf"
    ip netns add "$host"
    ip link add eth0 netns "$host" type veth peer name port$i netns "$router"
    ip -n "$host" address add 10.77.$i.2/24 dev eth0
    ip -n "$router" address add 10.77.$i.1/24 dev port$i
    ip -n "$host" link set lo up
    ip -n "$host" link set eth0 up
    ip -n "$router" link set port$i up
    ip -n "$host" route add default via 10.77.$i.1
done

# start OUT MASTER_ADDR [ARGUMENT]...: a process on each host.
start() {
    local out=$1 address=$2 i
    shift 2
    pids=()
    for i in 0 1; do
        # shellcheck disable=SC2016
        RANK=$i LOCAL_RANK=0 WORLD_SIZE=2 MASTER_ADDR=$address MASTER_PORT=29400 ip netns exec "${hosts[i]}" unshare --uts bash -c '
            echo "$1" > /proc/sys/kernel/hostname; shift; exec "$@"' - "host$i" "$LORAXS" train --recipe quickstart --datasets quickstart/datasets.toml \
            --threads 1 --device cpu --timeout $timeout --set train.max_steps=$steps --set train.checkpoint_every=25 --set train.log_every=25 \
            --set eval.every=300 --set train.batch_size=4 --set data.eval_limit=40 --out "$work/$out" "$@" > "$work/$out.$i.log" 2>&1 &
        pids+=($!)
    done
}
step() { tail -n 1 "$work/$1/metrics.jsonl" 2>/dev/null | sed -n 's/.*"step": *\([0-9]*\).*/\1/p'; }
# reach OUT STEP: waits until a training has come so far.
reach() {
    local _
    for _ in $(seq 600); do [ "$(step "$1" || echo 0)" -ge "$2" ] 2>/dev/null && return; sleep 0.1; done
    fail "$1 does not come to step $2"
}
# ends CODE CODE: waits for both.
ends() {
    local codes=()
    for pid in "${pids[@]}"; do code=0; wait "$pid" || code=$?; codes+=("$code"); done
    [ "${codes[*]}" = "$*" ] || fail "exit codes ${codes[*]}, not $*"
}
same() { cmp "$work/whole/adapter/adapter_model.safetensors" "$work/$1/adapter/adapter_model.safetensors" || fail "another adapter"; }

# Frames are lost without a word, or the interface tells that its cable is gone.
cut() { if [ "$1" = silent ]; then ip netns exec "$router" sysctl -qw net.ipv4.ip_forward=0; else ip -n "${hosts[1]}" link set eth0 down; fi; }
mend() {
    ip netns exec "$router" sysctl -qw net.ipv4.ip_forward=1
    ip -n "${hosts[1]}" link set eth0 up
    ip -n "${hosts[1]}" route replace default via 10.77.1.1
}

start whole 10.77.0.2
ends 0 0
say "uninterrupted: done"

for address in host0 10.77.0.2; do
    GLOO_SOCKET_IFNAME=$([ $address = host0 ] || echo eth0) start named $address --set train.max_steps=30
    ends 0 0
    rm -r "$work/named"
    say "by $address: done"
done

for kind in silent down; do
    timeout=30 start "short-$kind" 10.77.0.2
    reach "short-$kind" 200
    cut $kind
    before=$(step "short-$kind")
    sleep 10
    [ "$(step "short-$kind")" -le $((before + 25)) ] || fail "the cut did nothing"
    mend
    ends 0 0
    same "short-$kind"
    say "10 s without cable ($kind): survived, the same adapter"
done

for kind in silent down; do
    start "long-$kind" 10.77.0.2
    reach "long-$kind" 200
    cut $kind
    since=$SECONDS
    ends 75 75
    took=$((SECONDS - since))
    [ $took -le $((timeout + 4)) ] || fail "both ended after $took s"
    say "cable cut for good ($kind): both ended after $took s"
    grep -h '^error' "$work/long-$kind".?.log
    mend
    sleep 1
    start "long-$kind" 10.77.0.2 --resume
    ends 0 0
    same "long-$kind"
    say "resumed: the same adapter"
done
