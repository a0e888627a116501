/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The kernel side of a ringwall port.
 *
 *   ringwall_port   XDP: a frame goes to the AF_XDP socket of its queue, to the kernel, or where the fail mode says.
 *   ringwall_guard  tc egress: what the kernel itself sends to or from a pod goes to the host port, or nowhere.
 *   ringwall_cross  tc ingress on a wire whose driver cannot take redirected XDP frames from us: what the fail mode
 *                   lets cross, crosses as an skb.
 *
 * One copy serves every port: what is of one port is found by its interface's index. So a port is attached by a few system
 * calls, and nothing is loaded for it. Its sockets are in a map of its own.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "ringwall.h"

#define IPPROTO_ICMPV6 58

char LICENSE[] SEC("license") = "GPL";

/* By index of the interface; index 0, which none has, names the build. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, RW_MAX_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct rw_config);
} port_config SEC(".maps");

struct port_xsks {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, RW_MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
};

/* By index of the interface: the sockets of its queues. None: no socket has any. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, RW_MAX_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__array(values, struct port_xsks);
} xsks SEC(".maps");

/* By index of one end: the other. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, RW_MAX_WIRE_ENDS);
	__type(key, __u32);
	__type(value, __u32);
} wire_peer SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, RW_MAX_LOCAL);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u8);
} local4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, RW_MAX_LOCAL);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rw_address6);
	__type(value, __u8);
} local6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, RW_MAX_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rw_prefix4);
	__type(value, __u8);
} pods4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, RW_MAX_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rw_prefix6);
	__type(value, __u8);
} pods6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RW_MAX_FAILSAFE);
	__type(key, __u32);
	__type(value, struct rw_failsafe);
} failsafe SEC(".maps");

/* By index of the interface. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, RW_MAX_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct rw_counts);
} counters SEC(".maps");

/* What a program knows of the port whose packet it has. */
struct port {
	struct rw_config *config;
	struct rw_counts *counts;
};

enum kind {
	KIND_OTHER,	/* neither ARP nor IP */
	KIND_ARP,
	KIND_IP4,
	KIND_IP6,
	KIND_MALFORMED,
};

/* A packet as far as the programs look. Addresses and ports in network byte order. */
struct packet {
	enum kind kind;
	__u32 src[4];
	__u32 dst[4];
	__u16 sport;		/* 0 with `ports` unset */
	__u16 dport;
	__u8 protocol;
	__u8 hops;
	__u8 icmp_type;		/* of ICMP and ICMPv6; 0 where it is not there */
	__u8 ports;		/* sport and dport are known */
	__u8 later_fragment;		/* IPv4: a fragment that is not the first */
	__u8 l2_multicast;		/* Ethernet multicast or broadcast */
};

/* Finds a port; 0 where the interface is none. */
static __always_inline int find_port(__u32 ifindex, struct port *port)
{
	port->config = bpf_map_lookup_elem(&port_config, &ifindex);
	if (!port->config)
		return 0;
	port->counts = bpf_map_lookup_elem(&counters, &ifindex);
	return port->counts != 0;
}

static __always_inline void count(const struct port *port, __u32 counter)
{
	if (counter < RW_COUNTERS)
		port->counts->values[counter] += 1;
}

static __always_inline int is_vlan(__u16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD) || type == bpf_htons(ETH_P_QINQ1);
}

/* IPv4 fixed header, by byte: RFC 791 section 3.1. */
struct ip4 {
	__u8 version_ihl;
	__u8 tos;
	__u16 length;
	__u16 id;
	__u16 fragment;
	__u8 hops;
	__u8 protocol;
	__u16 checksum;
	__u32 src;
	__u32 dst;
};

/* IPv6 fixed header: RFC 8200 section 3. */
struct ip6 {
	__u32 version_class_flow;
	__u16 length;
	__u8 protocol;
	__u8 hops;
	__u32 src[4];
	__u32 dst[4];
};

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

static __always_inline void read_ip4(struct packet *pkt, const struct ip4 *ip)
{
	pkt->kind = KIND_IP4;
	pkt->src[0] = ip->src;
	pkt->dst[0] = ip->dst;
	pkt->protocol = ip->protocol;
	pkt->hops = ip->hops;
}

static __always_inline void read_ip6(struct packet *pkt, const struct ip6 *ip)
{
	pkt->kind = KIND_IP6;
	__builtin_memcpy(pkt->src, ip->src, 16);
	__builtin_memcpy(pkt->dst, ip->dst, 16);
	pkt->protocol = ip->protocol;
	pkt->hops = ip->hops;
}

static __always_inline void parse(struct xdp_md *ctx, struct packet *pkt)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	void *l4;
	__u16 type;
	void *l3;

	__builtin_memset(pkt, 0, sizeof(*pkt));
	pkt->kind = KIND_MALFORMED;
	if ((void *)(eth + 1) > end)
		return;
	pkt->l2_multicast = eth->h_dest[0] & 1;
	type = eth->h_proto;
	l3 = eth + 1;
#pragma unroll
	for (int tag = 0; tag < 2; tag++) {
		if (!is_vlan(type))
			break;
		if (l3 + 4 > end)
			return;
		type = *(__u16 *)(l3 + 2);
		l3 += 4;
	}
	if (is_vlan(type))
		return; /* a third tag would hide what is below it */

	if (type == bpf_htons(ETH_P_IP)) {
		struct ip4 *ip = l3;
		__u32 header;

		if ((void *)(ip + 1) > end || ip->version_ihl >> 4 != 4)
			return;
		header = (ip->version_ihl & 0xf) * 4;
		if (header < sizeof(*ip) || l3 + header > end)
			return;
		read_ip4(pkt, ip);
		if (ip->fragment & bpf_htons(0x1fff)) {
			pkt->later_fragment = 1;
			return; /* a later fragment has no ports */
		}
		l4 = l3 + header;
		if (pkt->protocol == IPPROTO_ICMP) {
			if (l4 + 1 <= end)
				pkt->icmp_type = *(__u8 *)l4;
			return;
		}
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		struct ip6 *ip = l3;

		if ((void *)(ip + 1) > end || (bpf_ntohl(ip->version_class_flow) >> 28) != 6)
			return;
		read_ip6(pkt, ip);
		l4 = ip + 1;
		if (pkt->protocol == IPPROTO_ICMPV6) {
			if (l4 + 1 <= end)
				pkt->icmp_type = *(__u8 *)l4;
			return;
		}
	} else {
		pkt->kind = type == bpf_htons(ETH_P_ARP) ? KIND_ARP : KIND_OTHER;
		return;
	}
	if (has_ports(pkt->protocol) && l4 + 4 <= end) {
		pkt->sport = *(__u16 *)l4;
		pkt->dport = *(__u16 *)(l4 + 2);
		pkt->ports = 1;
	}
}

static __always_inline int is_pod4(__u32 address)
{
	struct rw_prefix4 key = { .bits = 32 };

	__builtin_memcpy(key.address, &address, 4);
	return bpf_map_lookup_elem(&pods4, &key) != 0;
}

static __always_inline int is_pod6(const __u32 *address)
{
	struct rw_prefix6 key = { .bits = 128 };

	__builtin_memcpy(key.address, address, 16);
	return bpf_map_lookup_elem(&pods6, &key) != 0;
}

static __always_inline int from_pod(const struct packet *pkt)
{
	return pkt->kind == KIND_IP4 ? is_pod4(pkt->src[0]) : is_pod6(pkt->src);
}

static __always_inline int touches_pod(const struct packet *pkt)
{
	if (pkt->kind == KIND_IP4)
		return is_pod4(pkt->src[0]) || is_pod4(pkt->dst[0]);
	if (pkt->kind == KIND_IP6)
		return is_pod6(pkt->src) || is_pod6(pkt->dst);
	return 0;
}

/* Neighbour discovery is genuine only with hop limit 255 (RFC 4861 section 7.1): it was not routed here. */
static __always_inline int is_discovery(const struct packet *pkt)
{
	return pkt->kind == KIND_IP6 && pkt->protocol == IPPROTO_ICMPV6 && pkt->icmp_type >= 133 && pkt->icmp_type <= 137 &&
	       pkt->hops == 255;
}

static __always_inline int is_ip(const struct packet *pkt)
{
	return pkt->kind == KIND_IP4 || pkt->kind == KIND_IP6;
}

static __always_inline int is_multicast(const struct packet *pkt)
{
	if (pkt->kind == KIND_IP4)
		return (pkt->dst[0] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || pkt->dst[0] == 0xffffffff;
	return (pkt->dst[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline int is_link_local(const struct packet *pkt)
{
	return pkt->kind == KIND_IP6 && (pkt->dst[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* A multicast group whose packets stay on the link: ff02::/16. */
static __always_inline int is_link_group(const struct packet *pkt)
{
	return pkt->kind == KIND_IP6 && (pkt->dst[0] & bpf_htonl(0xffff0000)) == bpf_htonl(0xff020000);
}

static __always_inline int is_local(const struct packet *pkt);

/* What a pod has to tell the gateway about the link: router and neighbour solicitations, neighbour advertisements. */
static __always_inline int is_link_discovery(const struct packet *pkt)
{
	if (!is_discovery(pkt) || (pkt->icmp_type != 133 && pkt->icmp_type != 135 && pkt->icmp_type != 136))
		return 0;
	return is_link_group(pkt) || is_link_local(pkt) || is_local(pkt);
}

/* A redirect would change the kernel's routes. Its settings refuse them, too; this holds whoever changes those. */
static __always_inline int is_redirect(const struct packet *pkt)
{
	return (pkt->kind == KIND_IP4 && pkt->protocol == IPPROTO_ICMP && pkt->icmp_type == 5) ||
	       (pkt->kind == KIND_IP6 && pkt->protocol == IPPROTO_ICMPV6 && pkt->icmp_type == 137);
}

/* What a DHCP client sends before it has an address, to nobody in particular; or a server's answer to it. */
static __always_inline int is_dhcp(const struct packet *pkt, int from_client)
{
	__u16 sport = bpf_ntohs(pkt->sport), dport = bpf_ntohs(pkt->dport);
	int link_source = (pkt->src[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);

	if (pkt->protocol != IPPROTO_UDP || !pkt->ports)
		return 0;
	if (pkt->kind == KIND_IP4) {
		if (pkt->dst[0] != 0xffffffff)
			return 0;
		return from_client ? pkt->src[0] == 0 && sport == 68 && dport == 67 : sport == 67 && dport == 68;
	}
	if (!link_source)
		return 0;
	if (from_client) /* ff02::1:2, RFC 8415 section 7.1 */
		return sport == 546 && dport == 547 && pkt->dst[0] == bpf_htonl(0xff020000) && pkt->dst[1] == 0 &&
		       pkt->dst[2] == 0 && pkt->dst[3] == bpf_htonl(0x00010002);
	return sport == 547 && dport == 546 && is_link_local(pkt);
}

/* ARP and neighbour discovery of a pod make entries in the kernel's tables of neighbours, under whatever addresses it
 * claims, and those tables are one for all of a machine (net.*.neigh.default.gc_thresh3, 1024, of which entries younger
 * than 5 s are not taken out). So a pod may send DISCOVERY_BURST at once and one in DISCOVERY_INTERVAL_MS ms. */
#define DISCOVERY_INTERVAL_MS 125
#define DISCOVERY_BURST 32

static __always_inline int within_discovery_limit(struct rw_config *config)
{
	__u32 now = bpf_ktime_get_ns() / 1000000;
	/* How far what was heard reaches ahead of now. More than a burst means that it is long over. Two CPUs at once may
	 * count one for two, no more. */
	__u32 ahead = config->discovery_until - now;

	if (ahead > DISCOVERY_BURST * DISCOVERY_INTERVAL_MS)
		ahead = 0;
	if (ahead + DISCOVERY_INTERVAL_MS > DISCOVERY_BURST * DISCOVERY_INTERVAL_MS)
		return 0;
	config->discovery_until = now + ahead + DISCOVERY_INTERVAL_MS;
	return 1;
}

/* Whether a packet is what it says, as far as its outer header goes. What may hold another packet, or hides what it is,
 * may be a pod's: while nobody judges, closed means closed. */
static __always_inline int is_unencapsulated(const struct rw_config *config, const struct packet *pkt)
{
	__u16 sport = bpf_ntohs(pkt->sport), dport = bpf_ntohs(pkt->dport);

	switch (pkt->protocol) {
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
	case IPPROTO_IGMP:
	case IPPROTO_TCP:
	case IPPROTO_SCTP:
	case 89:	/* OSPF */
	case 103:	/* PIM */
	case 112:	/* VRRP */
		return 1;
	case IPPROTO_UDP:
		break;
	default:
		return 0;
	}
	if (pkt->later_fragment || !pkt->ports)
		return 0; /* its ports are in another packet */
	switch (dport) {
	case 1701:	/* L2TP */
	case 3544:	/* Teredo */
	case 4500:	/* IPsec */
	case 4789:	/* VXLAN */
	case 4790:	/* VXLAN-GPE */
	case 5555:	/* FoU, as kube-router has it */
	case 6080:	/* GUE */
	case 6081:	/* Geneve */
	case 6635:	/* MPLS */
	case 8285:	/* Flannel's own */
	case 8472:	/* VXLAN, as Linux has it */
	case 51820:	/* WireGuard */
	case 51821:
		return 0;
	}
#pragma unroll
	for (int i = 0; i < RW_MAX_TUNNEL_PORTS; i++) {
		if (config->tunnel_ports[i] && config->tunnel_ports[i] == dport)
			return 0;
	}
	return sport != 1701 && sport != 4500 && sport != 51820 && sport != 51821;
}

static __always_inline int is_local(const struct packet *pkt)
{
	if (pkt->kind == KIND_IP4)
		return bpf_map_lookup_elem(&local4, &pkt->dst[0]) != 0;
	return bpf_map_lookup_elem(&local6, pkt->dst) != 0;
}

static __always_inline int in_prefix(const __u32 *address, const __u32 *prefix, const __u32 *mask)
{
	return !(((address[0] ^ prefix[0]) & mask[0]) | ((address[1] ^ prefix[1]) & mask[1]) |
		 ((address[2] ^ prefix[2]) & mask[2]) | ((address[3] ^ prefix[3]) & mask[3]));
}

/* Whether the packet is of a failsafe connection, in either direction. Entries for every protocol do not mean tunnels, whose
 * packets may be any pod's: with `named`, only those that name the protocol count. Global, so that the verifier looks at its loop
 * once and not on every path that leads here: loading takes a tenth of the time. */
__noinline int is_failsafe(const struct packet *pkt, __u32 entries, __u32 named)
{
	__u16 family;

	if (!pkt)
		return 0;
	family = pkt->kind == KIND_IP4 ? 4 : 6;
	for (__u32 i = 0; i < RW_MAX_FAILSAFE; i++) {
		__u32 key = i;
		struct rw_failsafe *entry;
		__u16 port;

		if (i >= entries)
			break;
		entry = bpf_map_lookup_elem(&failsafe, &key);
		if (!entry)
			break;
		if (entry->family != family)
			continue;
		if (entry->protocol == 0xffff ? named : entry->protocol != pkt->protocol)
			continue;
		if (in_prefix(pkt->src, entry->from, entry->from_mask) && in_prefix(pkt->dst, entry->to, entry->to_mask)) {
			port = bpf_ntohs(pkt->dport);
			if (entry->port_low > entry->port_high ||
			    (pkt->ports && port >= entry->port_low && port <= entry->port_high))
				return 1;
		}
		if (in_prefix(pkt->dst, entry->from, entry->from_mask) && in_prefix(pkt->src, entry->to, entry->to_mask)) {
			port = bpf_ntohs(pkt->sport);
			if (entry->port_low > entry->port_high ||
			    (pkt->ports && port >= entry->port_low && port <= entry->port_high))
				return 1;
		}
	}
	return 0;
}

/* Sends a frame to the other end of the wire. */
static __always_inline int redirect_to_peer(const struct port *port)
{
	if (port->config->flags & RW_PEER_BY_SKB)
		return XDP_PASS; /* to ringwall_cross */
	if (bpf_redirect_map(&wire_peer, port->config->ifindex, XDP_DROP) == XDP_REDIRECT)
		return XDP_REDIRECT;
	count(port, RW_REDIRECT_FAILED);
	return XDP_DROP;
}

static __always_inline int forward_unjudged(const struct port *port)
{
	return port->config->role == RW_WIRE ? redirect_to_peer(port) : XDP_PASS;
}

/* No socket has the packet's queue. */
static __always_inline int apply_fail_mode(const struct port *port, const struct packet *pkt)
{
	const struct rw_config *config = port->config;

	if (!(config->flags & RW_FAIL_OPEN)) {
		if (pkt->kind == KIND_MALFORMED) {
			count(port, RW_FAIL_MALFORMED);
			return XDP_DROP;
		}
		/* A wire carries nothing that is not understood, but ARP: without it nothing of the rest is. */
		if (pkt->kind == KIND_OTHER && config->role == RW_WIRE) {
			count(port, RW_FAIL_DROPPED);
			return XDP_DROP;
		}
		/* Whose a link-local address is, nobody knows: maybe a pod's behind a bridge. */
		if (is_link_local(pkt) && config->role == RW_WIRE && !is_discovery(pkt)) {
			count(port, RW_FAIL_DROPPED);
			return XDP_DROP;
		}
		/* What comes from a pod is pod traffic, whatever source it claims. */
		int tunnel = is_ip(pkt) && !is_unencapsulated(config, pkt);

		if (config->role == RW_POD || touches_pod(pkt) || tunnel) {
			if (!is_failsafe(pkt, config->failsafe_count, tunnel)) {
				count(port, RW_FAIL_DROPPED);
				return XDP_DROP;
			}
			count(port, RW_FAIL_SAFE);
			return forward_unjudged(port);
		}
	}
	count(port, config->role == RW_WIRE ? RW_FAIL_REDIRECTED : RW_FAIL_PASSED);
	return forward_unjudged(port);
}

/* The slot's socket, or -1. The kernel empties a slot when its socket closes. */
static __always_inline int redirect_to_socket(struct xdp_md *ctx, const struct port *port)
{
	__u32 ifindex = port->config->ifindex;
	void *sockets = bpf_map_lookup_elem(&xsks, &ifindex);

	if (!sockets || bpf_redirect_map(sockets, ctx->rx_queue_index, XDP_ABORTED) != XDP_REDIRECT)
		return -1;
	count(port, RW_XSK);
	return XDP_REDIRECT;
}

static __always_inline int pass_to_kernel(const struct port *port, __u32 counter)
{
	count(port, counter);
	return XDP_PASS;
}

SEC("xdp")
int ringwall_port(struct xdp_md *ctx)
{
	const struct rw_config *config;
	struct port port;
	struct packet pkt;
	int action;

	if (!find_port(ctx->ingress_ifindex, &port))
		return XDP_DROP;
	config = port.config;

	if (config->role == RW_WIRE && config->flags & RW_JUDGE_ALL) {
		action = redirect_to_socket(ctx, &port);
		if (action >= 0)
			return action;
	}
	parse(ctx, &pkt);

	if (config->role == RW_WIRE) {
		if (!(config->flags & RW_JUDGE_ALL)) {
			if (pkt.kind != KIND_MALFORMED && !touches_pod(&pkt)) {
				count(&port, RW_WIRE_BYPASS);
				return redirect_to_peer(&port);
			}
			action = redirect_to_socket(ctx, &port);
			if (action >= 0)
				return action;
		}
		return apply_fail_mode(&port, &pkt);
	}

	if (config->role == RW_POD && (pkt.kind == KIND_ARP || (is_ip(&pkt) && (is_link_discovery(&pkt) || is_dhcp(&pkt, 1))))) {
		if (within_discovery_limit(port.config))
			return pass_to_kernel(&port, RW_KERNEL_NEIGHBOUR);
		count(&port, RW_KERNEL_REFUSED);
		return XDP_DROP;
	}
	if (pkt.kind == KIND_ARP)
		return pass_to_kernel(&port, RW_KERNEL_NEIGHBOUR);
	if (config->role == RW_POD) {
		/* Whatever is not about the link itself is judged, to the host and to groups too, whatever source it claims:
		 * the host's services listen there. */
		if (pkt.kind == KIND_OTHER) {
			count(&port, RW_KERNEL_REFUSED);
			return XDP_DROP;
		}
	} else if (pkt.kind == KIND_OTHER) {
		return pass_to_kernel(&port, RW_KERNEL_OTHER);
	} else if (pkt.kind != KIND_MALFORMED) {
		if (is_redirect(&pkt) && (is_local(&pkt) || is_multicast(&pkt) || is_link_local(&pkt))) {
			count(&port, RW_KERNEL_REFUSED);
			return XDP_DROP;
		}
		if (is_discovery(&pkt))
			return pass_to_kernel(&port, RW_KERNEL_NEIGHBOUR);
		if (!from_pod(&pkt)) {
			if (is_multicast(&pkt)) {
				int mld = pkt.kind == KIND_IP6 && pkt.protocol == IPPROTO_ICMPV6 &&
					  ((pkt.icmp_type >= 130 && pkt.icmp_type <= 132) || pkt.icmp_type == 143);

				return pass_to_kernel(&port, mld ? RW_KERNEL_NEIGHBOUR : RW_KERNEL_MULTICAST);
			}
			if (is_link_local(&pkt))
				return pass_to_kernel(&port, RW_KERNEL_LINK_LOCAL);
			if (pkt.l2_multicast) /* directed broadcast */
				return pass_to_kernel(&port, RW_KERNEL_MULTICAST);
			if (is_local(&pkt))
				return pass_to_kernel(&port, RW_KERNEL_LOCAL);
		}
	}
	action = redirect_to_socket(ctx, &port);
	if (action >= 0)
		return action;
	return apply_fail_mode(&port, &pkt);
}

/* The same view of an skb, whose headers may not be linear. */
static __always_inline void parse_skb(struct __sk_buff *skb, struct packet *pkt)
{
	__u32 offset = ETH_HLEN;
	__u16 type;
	__u16 ports[2];

	__builtin_memset(pkt, 0, sizeof(*pkt));
	pkt->kind = KIND_MALFORMED;
	if (bpf_skb_load_bytes(skb, 12, &type, sizeof(type)))
		return;
#pragma unroll
	for (int tag = 0; tag < 2; tag++) {
		if (!is_vlan(type))
			break;
		if (bpf_skb_load_bytes(skb, offset + 2, &type, sizeof(type)))
			return;
		offset += 4;
	}
	if (is_vlan(type))
		return;
	if (type == bpf_htons(ETH_P_IP)) {
		struct ip4 ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
			return;
		read_ip4(pkt, &ip);
		if (ip.fragment & bpf_htons(0x1fff)) {
			pkt->later_fragment = 1;
			return;
		}
		offset += (ip.version_ihl & 0xf) * 4;
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		struct ip6 ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
			return;
		read_ip6(pkt, &ip);
		offset += sizeof(ip);
		if (pkt->protocol == IPPROTO_ICMPV6) {
			bpf_skb_load_bytes(skb, offset, &pkt->icmp_type, 1);
			return;
		}
	} else {
		pkt->kind = type == bpf_htons(ETH_P_ARP) ? KIND_ARP : KIND_OTHER;
		return;
	}
	if (has_ports(pkt->protocol) && !bpf_skb_load_bytes(skb, offset, ports, sizeof(ports))) {
		pkt->sport = ports[0];
		pkt->dport = ports[1];
		pkt->ports = 1;
	}
}

SEC("tc")
int ringwall_guard(struct __sk_buff *skb)
{
	const struct rw_config *config;
	struct port port;
	struct packet pkt;
	__u32 ifindex = skb->ifindex;
	__u32 zero = 0;
	void *sockets;

	if (!find_port(ifindex, &port))
		return TC_ACT_SHOT;
	config = port.config;
	parse_skb(skb, &pkt);
	if (pkt.kind == KIND_MALFORMED) {
		count(&port, RW_GUARD_DROPPED);
		return TC_ACT_SHOT;
	}
	if (config->role == RW_POD) {
		/* Whatever the kernel sends here is to a pod, by any address. */
		if (pkt.kind == KIND_ARP || (is_ip(&pkt) && (is_discovery(&pkt) || is_dhcp(&pkt, 0))))
			return TC_ACT_OK;
	} else if (!touches_pod(&pkt) || is_discovery(&pkt)) {
		return TC_ACT_OK;
	}
	/* Queue 0 stands for the port: the dataplane fills and loses all slots together. */
	sockets = bpf_map_lookup_elem(&xsks, &ifindex);
	if ((!sockets || !bpf_map_lookup_elem(sockets, &zero)) &&
	    (config->flags & RW_FAIL_OPEN || (is_ip(&pkt) && is_failsafe(&pkt, config->failsafe_count, 0)))) {
		count(&port, RW_GUARD_FAIL_OPEN);
		return TC_ACT_OK;
	}
	/* What the kernel forwards came in unjudged, or was judged for another destination or source: its forwarding is off
	 * on ringwall's ports, and this holds where somebody turns it on. The host port has no way for groups or for
	 * addresses of the link. */
	if (skb->ingress_ifindex || !is_ip(&pkt) || is_multicast(&pkt) || is_link_local(&pkt)) {
		count(&port, RW_GUARD_DROPPED);
		return TC_ACT_SHOT;
	}
	if (!(config->flags & RW_GUARD_REDIRECT)) {
		count(&port, RW_GUARD_DROPPED);
		return TC_ACT_SHOT;
	}
	if (bpf_skb_store_bytes(skb, 0, config->guard_mac, ETH_ALEN, 0)) {
		count(&port, RW_GUARD_DROPPED);
		return TC_ACT_SHOT;
	}
	count(&port, RW_GUARD_REDIRECTED);
	return bpf_redirect(config->guard_ifindex, 0);
}

SEC("tc")
int ringwall_cross(struct __sk_buff *skb)
{
	struct rw_config *config;
	__u32 ifindex = skb->ifindex;

	config = bpf_map_lookup_elem(&port_config, &ifindex);
	if (!config)
		return TC_ACT_SHOT;
	return bpf_redirect(config->peer_ifindex, 0);
}
