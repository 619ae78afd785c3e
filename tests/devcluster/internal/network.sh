#!/usr/bin/env bash
# Makes the instance's network namespace: no uplink and no default route, so that no packet can leave the machine.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

ip netns add "$NAME"
inside() { ip -n "$NAME" "$@"; }
inside link set lo up
# The node's address sits on a veth pair whose two ends both stay inside (the kernel may lack the dummy device).
inside link add eth0 type veth peer name eth0-peer
inside link set eth0 up
inside link set eth0-peer up
inside address add "$NODE_IP/24" dev eth0
# Without a default route, a local connection to a service address needs a route before the NAT rules can see it.
inside route add "$SERVICE_CIDR" dev eth0 src "$NODE_IP"
ip netns exec "$NAME" sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0
# kube-proxy must see the traffic between pods of one bridge.
[ -d /proc/sys/net/bridge ] || modprobe br_netfilter || die "the kernel has no br_netfilter" "boot one that has it"
ip netns exec "$NAME" sysctl -qw net.bridge.bridge-nf-call-iptables=1
