#!/bin/sh
# Sends the lab's UDP flows with the kernel's pktgen: from the clients to one server, as bench/lab/cluster.py has them.
#
#   bench/lab/pktgen.sh DEVICE MAC [SIZE] [FLOWS] [PACKETS/S, 0 for all it can] [THREADS] [SECONDS] [UDP PORT]
#   bench/lab/pktgen.sh ens1f0 02:00:00:00:00:01 64 1000 1000000 2 30
#
# FLOWS over 250 are rounded up to 250 times a number of ports. MAC is the other end's: on a wire the server's, on a router the gateway's port. SIZE has the FCS, which the card adds.
set -eu

device=${1:?which device? see the head of this file} mac=${2:?whose MAC address? see the head of this file}
size=${3:-64} flows=${4:-1000} rate=${5:-0} threads=${6:-1} seconds=${7:-30} port=${8:-9}
proc=/proc/net/pktgen
ports=$(((flows + 249) / 250))
# Addresses and ports count at once, so all pairs come only if the numbers of both have no common divisor.
while [ "$ports" -gt 1 ] && { [ $((ports % 2)) -eq 0 ] || [ $((ports % 5)) -eq 0 ]; }; do
	ports=$((ports + 1))
done

fail() {
	echo "pktgen.sh: $*" >&2
	exit 2
}

[ "$size" -ge 64 ] || fail "a frame has at least 64 bytes, not $size"
[ "$ports" -le 64512 ] || fail "at most 16128000 flows, not $flows"
[ "$threads" -le "$(nproc)" ] || fail "$threads threads on $(nproc) CPUs"
[ -d /sys/class/net/"$device" ] || fail "there is no device $device"
[ -d $proc ] || modprobe pktgen 2>/dev/null || fail "this kernel has no pktgen (CONFIG_NET_PKTGEN)"

write() { # FILE TEXT
	echo "$2" >"$proc/$1" || fail "pktgen refuses: $2"
	case $(grep -a '^Result:' "$proc/$1" || true) in
	*Invalid* | *ERROR* | *fail*) fail "pktgen refuses: $2" ;;
	esac
}

write pgctrl reset
thread=0
while [ "$thread" -lt "$threads" ]; do
	queue=$device@$thread
	write kpktgend_$thread rem_device_all
	write kpktgend_$thread "add_device $queue"
	write "$queue" "count 0"
	write "$queue" "pkt_size $((size - 4))"
	write "$queue" "queue_map_min $thread"
	write "$queue" "queue_map_max $thread"
	write "$queue" "dst_mac $mac"
	write "$queue" "src_min 198.18.0.1"
	write "$queue" "src_max 198.18.0.$((flows < 250 ? flows : 250))"
	write "$queue" "dst_min 10.244.0.1"
	write "$queue" "dst_max 10.244.0.1"
	write "$queue" "udp_src_min 1024"
	write "$queue" "udp_src_max $((1024 + ports))" # one more than the last
	write "$queue" "udp_dst_min $port"
	write "$queue" "udp_dst_max $port"
	write "$queue" "flag UDPCSUM"
	[ "$rate" -eq 0 ] || write "$queue" "ratep $((rate / threads))"
	thread=$((thread + 1))
done

(
	sleep "$seconds"
	echo stop >$proc/pgctrl
) &
echo start >$proc/pgctrl
wait
grep -ah -A1 '^Result: OK' $proc/"$device"@*
