/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The programs of a node. The kernel routes, bridges, translates and encapsulates; a packet is judged where it leaves, by
 * conntrack's own tuples.
 *
 *   node_from_pod  tc ingress of a pod's port: the source is this pod's, and nothing hides a packet from `exit`.
 *   node_exit      tc egress of every device: a cached decision, or the packet goes to a worker.
 *   node_from_net  tc ingress of every other device: no pod of this node sends from there.
 *   node_back      tc ingress of the near end of the ask pair: what a worker lets pass goes on where it was taken.
 *   node_judge     XDP of the far end of the ask pair: to the AF_XDP socket of the queue.
 *
 * One copy serves every device; what is of one device is found by its index.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "node.h"

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define ETH_BYTES 14

/* The next program of the device is asked too. TC_ACT_OK would end the chain. */
#define NEXT TC_ACT_UNSPEC

char LICENSE[] SEC("license") = "GPL";

/* Number of buckets of the flow cache less one. */
const volatile __u32 flow_bucket_mask = 0;
/* Whether this kernel has `bpf_rdonly_cast` and `bpf_cast_to_kern_ctx`. */
const volatile __u8 has_casts = 0;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rw_node_config);
} node_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rw_node_pulse);
} node_pulse SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, RW_MAX_DEVICES);
	__type(key, __u32);
	__type(value, struct rw_node_device);
} node_devices SEC(".maps");

/* The same devices where they are found without a call. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, RW_DEVICE_PLACES);
	__type(key, __u32);
	__type(value, struct rw_node_device);
} device_places SEC(".maps");

struct address {
	__u32 words[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, RW_MAX_ADDRESSES);
	__type(key, struct address);
	__type(value, struct rw_node_address);
} node_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, RW_MAX_SERVICE_PREFIXES);
	__type(key, struct rw_service_key);
	__type(value, __u8);
} service_cidrs SEC(".maps");

/* By index of the device: until when its tokens are spent, CLOCK_MONOTONIC, ns. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, RW_MAX_DEVICES);
	__type(key, __u32);
	__type(value, __u64);
} ask_tokens SEC(".maps");

/* The queues of the ask pair. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, RW_MAX_ASK_QUEUES);
	__type(key, __u32);
	__type(value, struct rw_ask_queue);
} ask_queues SEC(".maps");

struct ask_share_key {
	__u32 ifindex;
	__u32 queue;
};

/* What of a queue's waiting asks is a device's, in two groups: how many, and the newest ticket of each. Once that ticket is taken, none of its
 * group waits, whether the others were taken before it or lost. */
struct ask_share {
	__u32 older;
	__u32 older_ticket;
	__u32 newer;
	__u32 newer_ticket;
	__u64 progress;		/* when a group was last done, CLOCK_MONOTONIC, ns */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, RW_MAX_ASK_SHARES);
	__type(key, struct ask_share_key);
	__type(value, struct ask_share);
} ask_shares SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RW_NODE_COUNTERS);
	__type(key, __u32);
	__type(value, struct rw_node_count);
} node_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, RW_MAX_ASK_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} ask_sockets SEC(".maps");

/* The flow cache. The loader sets the number of elements. Workers write entries by their mapping; see bpf/DESIGN.md. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rw_flow_bucket);
} flow_buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, RW_WAYS);
	__type(key, __u32);
	__type(value, struct rw_flow_entry);
} flow_entries SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, RW_WAYS);
	__type(key, __u32);
	__type(value, struct rw_flow_usage);
} flow_usage SEC(".maps");

/* In slots of 8 bytes: the kernel rounds up. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, RW_EPOCHS);
	__type(key, __u32);
	__type(value, __u32);
} flow_epochs SEC(".maps");

/* What the programs read of the kernel's own structures. Fields are found by the kernel's type information when the programs are
 * loaded, wherever this kernel has them. */
struct sk_buff {
	unsigned long _nfct;
} __attribute__((preserve_access_index));

struct nf_conntrack_zone {
	__u16 id;
} __attribute__((preserve_access_index));

struct nf_conntrack_tuple_hash {
} __attribute__((preserve_access_index));

struct ip_ct_tcp {
	__u8 state;
} __attribute__((preserve_access_index));

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} __attribute__((preserve_access_index));

struct nf_conn {
	union nf_conntrack_proto proto;
	struct nf_conntrack_zone zone;
	struct nf_conntrack_tuple_hash tuplehash[2];
} __attribute__((preserve_access_index));

/* Values of the low bits of _nfct, enum ip_conntrack_info. */
#define CT_INFO_MASK 7ul
#define CT_RELATED 1
#define CT_NEW 2
#define CT_REPLY 3		/* this and above: in the reply direction */
#define CT_RELATED_REPLY 4
#define CT_UNTRACKED 7

/* Of enum tcp_conntrack. */
#define CT_TCP_ESTABLISHED 3

/* nf_conn.tuplehash as it lies in memory, unchanged for as long as the kernel has IPv6 conntrack. */
struct ct_tuple {
	__u32 src[4];
	__u16 src_port;
	__u16 family;		/* AF_INET, AF_INET6 */
	__u32 dst[4];
	__u16 dst_port;
	__u8 protocol;
	__u8 direction;
};

struct ct_tuples {
	struct {
		__u64 node[2];
		struct ct_tuple tuple;
	} hash[2];
};

#define AF_INET 2

enum kind {
	KIND_MALFORMED,
	KIND_ARP,
	KIND_IP,
	KIND_OTHER,		/* neither ARP nor IP */
};

enum fragment {
	WHOLE,
	FIRST_FRAGMENT,
	LATER_FRAGMENT,
};

/* A packet as far as the programs look. Addresses and ports in network byte order, IPv4 as ::ffff:a.b.c.d. */
struct packet {
	__u32 src[4];
	__u32 dst[4];
	__u16 src_port;		/* ICMP: the identifier of queries */
	__u16 dst_port;		/* ICMP: type in the first byte, code in the second */
	__u16 ethertype;
	__u16 l3;		/* offset of the IP header */
	__u16 l4;		/* offset behind all IP headers */
	__u8 kind;		/* enum kind */
	__u8 ipv6;
	__u8 protocol;
	__u8 hops;
	__u8 fragment;		/* enum fragment */
	__u8 has_l4;		/* what the protocol's header is asked for is there */
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 tcp_flags;
	__u8 tagged;		/* with a VLAN tag */
	__u8 to_group;		/* by its Ethernet address */
	__u8 options;		/* IPv4: bytes of options */
	__u8 routing;		/* IPv6: with a routing header */
	__u8 mac[6];		/* of the sender */
	__u8 sctp_init;		/* SCTP: begins an association */
	__u8 pad[2];
};

/* IPv4 fixed header: RFC 791 section 3.1. */
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

struct ethernet {
	__u8 to[6];
	__u8 from[6];
	__u16 type;
};

/* The first 14 bytes of TCP: RFC 9293 section 3.1. */
struct tcp {
	__u16 src_port;
	__u16 dst_port;
	__u32 sequence;
	__u32 acknowledgement;
	__u8 offset;
	__u8 flags;
} __attribute__((packed, aligned(2)));

/* The first 8 bytes of UDP, SCTP, DCCP and UDP-Lite; of ICMP. */
struct l4 {
	__u16 src_port;		/* ICMP: type, code */
	__u16 dst_port;
	__u16 identifier;	/* of ICMP queries */
	__u16 last;
};

/* An extension header of IPv6: RFC 8200 section 4. */
struct extension {
	__u8 next;
	__u8 length;
	__u16 place;		/* fragment: offset in units of 8 bytes, and flags */
	__u32 rest;
};

/* Further into a packet than any header begins that is looked at here. */
#define FAR 4096

/* Reads a header, 0 where it is there. Mostly it lies before the processor as it is; a helper takes longer. The empty assembly
 * keeps the offset in one register, so that the verifier knows of the addition what it knows of the comparison. */
#define READ(skb, at, to)                                                                                                \
	({                                                                                                               \
		__u64 offset_ = (at);                                                                                    \
		int missing_ = -1;                                                                                       \
                                                                                                                         \
		asm volatile("" : "+r"(offset_));                                                                        \
		if (offset_ < FAR) {                                                                                     \
			typeof(*(to)) *from_ = (void *)(long)(skb)->data + offset_;                                      \
                                                                                                                         \
			if ((void *)(from_ + 1) <= (void *)(long)(skb)->data_end) {                                      \
				*(to) = *from_;                                                                          \
				missing_ = 0;                                                                            \
			} else {                                                                                         \
				missing_ = bpf_skb_load_bytes(skb, offset_, to, sizeof(*(to)));                          \
			}                                                                                                \
		}                                                                                                        \
		missing_;                                                                                                \
	})

static __always_inline int is_vlan(__u16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD) || type == bpf_htons(ETH_P_QINQ1);
}

static __always_inline void map_ip4(__u32 *to, __u32 address)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = address;
}

static __always_inline int is_mapped(const __u32 *address)
{
	return address[0] == 0 && address[1] == 0 && address[2] == bpf_htonl(0xffff);
}

static __always_inline void copy_address(__u32 *to, const __u32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

static __always_inline int same_address(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

static __always_inline int same_tuple(const struct rw_tuple *a, const struct rw_tuple *b)
{
	return same_address(a->src, b->src) && same_address(a->dst, b->dst) && a->src_port == b->src_port &&
	       a->dst_port == b->dst_port;
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP || protocol == IPPROTO_DCCP ||
	       protocol == IPPROTO_UDPLITE;
}

static __always_inline int is_icmp(const struct packet *pkt)
{
	return pkt->protocol == (pkt->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
}

/* An error quotes the packet that it is about. */
static __always_inline int is_icmp_error(const struct packet *pkt)
{
	if (!is_icmp(pkt) || !pkt->has_l4)
		return 0;
	if (pkt->ipv6)
		return pkt->icmp_type < 128;
	return pkt->icmp_type == 3 || pkt->icmp_type == 4 || pkt->icmp_type == 5 || pkt->icmp_type == 11 ||
	       pkt->icmp_type == 12;
}

/* Types whose answer carries the same identifier: echo, and for IPv4 timestamp, information and mask. */
static __always_inline int is_icmp_query(const struct packet *pkt)
{
	if (pkt->ipv6)
		return pkt->icmp_type == 128 || pkt->icmp_type == 129;
	return pkt->icmp_type == 8 || pkt->icmp_type == 0 || (pkt->icmp_type >= 13 && pkt->icmp_type <= 18);
}

/* The type that answers a query, as conntrack has it. */
static __always_inline __u8 inverse_icmp_type(const struct packet *pkt)
{
	__u8 type = pkt->icmp_type;

	if (!is_icmp_query(pkt))
		return type;
	if (type == 8 || type == 0)
		return 8 - type;
	if (pkt->ipv6)
		return type ^ 1; /* 128 and 129 */
	return ((type - 13) ^ 1) + 13; /* 13 and 14, 15 and 16, 17 and 18 */
}

static __always_inline void read_l4(struct __sk_buff *skb, struct packet *pkt)
{
	struct tcp tcp;
	struct l4 l4;

	if (pkt->fragment == LATER_FRAGMENT)
		return; /* begins in another packet */
	if (pkt->protocol == IPPROTO_TCP) {
		if (READ(skb, pkt->l4, &tcp))
			return;
		pkt->tcp_flags = tcp.flags;
		pkt->src_port = tcp.src_port;
		pkt->dst_port = tcp.dst_port;
	} else if (has_ports(pkt->protocol)) {
		if (READ(skb, pkt->l4, &l4))
			return;
		pkt->src_port = l4.src_port;
		pkt->dst_port = l4.dst_port;
		if (pkt->protocol == IPPROTO_SCTP) {
			__u8 chunk;

			/* Behind ports, tag and checksum; INIT is alone in its packet (RFC 9260 section 6.10). */
			if (!READ(skb, pkt->l4 + 12, &chunk))
				pkt->sctp_init = chunk == 1;
		}
	} else if (is_icmp(pkt)) {
		if (READ(skb, pkt->l4, &l4))
			return;
		pkt->icmp_type = bpf_ntohs(l4.src_port) >> 8;
		pkt->icmp_code = bpf_ntohs(l4.src_port) & 0xff;
		if (is_icmp_query(pkt))
			pkt->src_port = l4.identifier;
		pkt->dst_port = l4.src_port;
	} else {
		return;
	}
	pkt->has_l4 = 1;
}

static __always_inline int read_ip4(struct __sk_buff *skb, struct packet *pkt)
{
	struct ip4 ip;
	__u32 header;

	if (READ(skb, pkt->l3, &ip) || ip.version_ihl >> 4 != 4)
		return KIND_MALFORMED;
	header = (ip.version_ihl & 0xf) * 4;
	if (header < sizeof(ip))
		return KIND_MALFORMED;
	map_ip4(pkt->src, ip.src);
	map_ip4(pkt->dst, ip.dst);
	pkt->protocol = ip.protocol;
	pkt->hops = ip.hops;
	pkt->options = header - sizeof(ip);
	pkt->l4 = pkt->l3 + header;
	if (ip.fragment & bpf_htons(0x1fff))
		pkt->fragment = LATER_FRAGMENT;
	else if (ip.fragment & bpf_htons(0x2000))
		pkt->fragment = FIRST_FRAGMENT;
	return KIND_IP;
}

/* More extension headers than anybody sends. */
#define MAX_EXTENSIONS 8

static __always_inline int read_ip6(struct __sk_buff *skb, struct packet *pkt)
{
	__u32 offset = pkt->l3 + sizeof(struct ip6);
	struct ip6 ip;
	__u8 next;

	if (READ(skb, pkt->l3, &ip) || bpf_ntohl(ip.version_class_flow) >> 28 != 6)
		return KIND_MALFORMED;
	pkt->ipv6 = 1;
	/* The form that IPv4 addresses have here is on no wire (RFC 4942 section 2.2): it would be taken for one of those. */
	if (is_mapped(ip.src) || is_mapped(ip.dst))
		return KIND_MALFORMED;
	copy_address(pkt->src, ip.src);
	copy_address(pkt->dst, ip.dst);
	pkt->hops = ip.hops;
	next = ip.protocol;
	for (int i = 0; i <= MAX_EXTENSIONS; i++) {
		struct extension extension;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_FRAGMENT && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_AH) {
			pkt->protocol = next;
			pkt->l4 = offset;
			return KIND_IP;
		}
		if (READ(skb, offset, &extension))
			return KIND_MALFORMED;
		if (next == IPPROTO_FRAGMENT) {
			offset += 8;
			if (extension.place & bpf_htons(0xfff8)) {
				/* What follows is of the middle of something. */
				pkt->fragment = LATER_FRAGMENT;
				pkt->protocol = extension.next;
				pkt->l4 = offset;
				return KIND_IP;
			}
			/* A fragment that is all of its packet (RFC 6946) is whole. */
			if (extension.place & bpf_htons(1))
				pkt->fragment = FIRST_FRAGMENT;
		} else if (next == IPPROTO_AH) {
			offset += (extension.length + 2) * 4;
		} else {
			if (next == IPPROTO_ROUTING)
				pkt->routing = 1;
			offset += (extension.length + 1) * 8;
		}
		next = extension.next;
	}
	return KIND_MALFORMED;
}

/* Reads the headers of any packet. Global, so that the verifier looks at it once. */
__noinline int parse_any(struct __sk_buff *skb, struct packet *pkt, __u32 no_link)
{
	struct ethernet ethernet;
	__u16 type;
	int kind;

	if (!pkt)
		return KIND_MALFORMED;
	if (no_link) {
		__u8 version;

		if (READ(skb, 0, &version))
			return KIND_MALFORMED;
		type = version >> 4 == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
		pkt->l3 = 0;
	} else {
		if (READ(skb, 0, &ethernet))
			return KIND_MALFORMED;
		pkt->to_group = ethernet.to[0] & 1;
		__builtin_memcpy(pkt->mac, ethernet.from, 6);
		type = ethernet.type;
		pkt->l3 = ETH_BYTES;
	}
	pkt->tagged = skb->vlan_present != 0;
	for (int tag = 0; tag < 2 && is_vlan(type); tag++) {
		pkt->tagged = 1;
		if (READ(skb, pkt->l3 + 2, &type))
			return KIND_MALFORMED;
		pkt->l3 += 4;
	}
	if (is_vlan(type))
		return KIND_MALFORMED; /* a third tag would hide what is below it */
	pkt->ethertype = type;
	if (type == bpf_htons(ETH_P_IP))
		kind = read_ip4(skb, pkt);
	else if (type == bpf_htons(ETH_P_IPV6))
		kind = read_ip6(skb, pkt);
	else
		return type == bpf_htons(ETH_P_ARP) ? KIND_ARP : KIND_OTHER;
	if (kind == KIND_IP)
		read_l4(skb, pkt);
	return kind;
}

/* Ports, and of TCP the flags, of a packet whose header lies at `l4`; 0 where that is elsewhere, or of another protocol. */
static __always_inline int parse_usual_l4(struct packet *pkt, const void *l4, const void *end)
{
	const struct tcp *tcp = l4;
	const struct l4 *udp = l4;

	if ((void *)(udp + 1) > end)
		return 0;
	if (pkt->protocol == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > end)
			return 0;
		pkt->tcp_flags = tcp->flags;
	} else if (pkt->protocol != IPPROTO_UDP) {
		return 0;
	}
	pkt->src_port = udp->src_port;
	pkt->dst_port = udp->dst_port;
	pkt->has_l4 = 1;
	return 1;
}

/* Reads the headers of what nearly every packet is: TCP or UDP, whole and untagged, right behind IP without options, and before the
 * processor. 0 where it is not; then what it has written is not to be used. */
static __always_inline int parse_usual(struct __sk_buff *skb, struct packet *pkt)
{
	const void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct ethernet *ethernet = data;
	const struct ip4 *ip4 = data + ETH_BYTES;
	const struct ip6 *ip6 = data + ETH_BYTES;

	if ((void *)(ip4 + 1) > end || skb->vlan_present)
		return 0;
	pkt->to_group = ethernet->to[0] & 1;
	__builtin_memcpy(pkt->mac, ethernet->from, 6);
	pkt->ethertype = ethernet->type;
	pkt->l3 = ETH_BYTES;
	if (ethernet->type == bpf_htons(ETH_P_IP)) {
		if (ip4->version_ihl != 0x45 || ip4->fragment & bpf_htons(0x3fff))
			return 0;
		map_ip4(pkt->src, ip4->src);
		map_ip4(pkt->dst, ip4->dst);
		pkt->protocol = ip4->protocol;
		pkt->hops = ip4->hops;
		pkt->l4 = ETH_BYTES + sizeof(*ip4);
		return parse_usual_l4(pkt, ip4 + 1, end);
	}
	if (ethernet->type != bpf_htons(ETH_P_IPV6) || (void *)(ip6 + 1) > end ||
	    bpf_ntohl(ip6->version_class_flow) >> 28 != 6)
		return 0;
	copy_address(pkt->src, ip6->src);
	copy_address(pkt->dst, ip6->dst);
	if (is_mapped(pkt->src) || is_mapped(pkt->dst))
		return 0;
	pkt->ipv6 = 1;
	pkt->protocol = ip6->protocol;
	pkt->hops = ip6->hops;
	pkt->l4 = ETH_BYTES + sizeof(*ip6);
	return parse_usual_l4(pkt, ip6 + 1, end);
}

/* Reads a packet's headers into zeros. */
static __always_inline int parse(struct __sk_buff *skb, struct packet *pkt, __u32 no_link)
{
	if (!no_link && parse_usual(skb, pkt))
		return KIND_IP;
	__builtin_memset(pkt, 0, sizeof(*pkt));
	return parse_any(skb, pkt, no_link);
}

static __always_inline struct rw_node_config *get_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&node_config, &zero);
}

static __always_inline void count(__u32 counter, __u64 bytes, int audited)
{
	struct rw_node_count *counts = bpf_map_lookup_elem(&node_counters, &counter);

	if (!counts)
		return;
	counts->packets += 1;
	counts->bytes += bytes;
	counts->audited += audited;
}

/* Outcomes with which a packet goes on. */
#define PASSING                                                                                                          \
	(1ull << RW_POD_PASSED | 1ull << RW_POD_LINK | 1ull << RW_EXIT_HIT | 1ull << RW_EXIT_RETURNED |                  \
	 1ull << RW_EXIT_NO_POD | 1ull << RW_EXIT_OWN_STACK | 1ull << RW_EXIT_LINK | 1ull << RW_EXIT_NOT_IP |            \
	 1ull << RW_EXIT_RELATED | 1ull << RW_EXIT_FAIL_OPEN | 1ull << RW_NET_PASSED)

/* Counts a packet's outcome and says what the kernel is to do. In audit, what would drop passes. */
static __always_inline int conclude(const struct rw_node_config *config, __u32 outcome, __u64 bytes)
{
	int drop = !(PASSING >> (outcome & 63) & 1);
	int audited = drop && config->flags & RW_NODE_AUDIT;

	count(outcome, bytes, audited);
	return drop && !audited ? TC_ACT_SHOT : NEXT;
}

#define barrier() asm volatile("" ::: "memory")

/* Where a device is kept. Who reads there what matters together uses `read_device`. */
static __always_inline struct rw_node_device *find_device(__u32 ifindex)
{
	__u32 index = ifindex & (RW_DEVICE_PLACES - 1);
	struct rw_node_device *place = bpf_map_lookup_elem(&device_places, &index);

	if (place && place->kind && place->ifindex == ifindex && !(place->version & 1))
		return place;
	return bpf_map_lookup_elem(&node_devices, &ifindex);
}

/* Copies what a device is, and answers where it is kept. Its place may be written meanwhile: what is not whole is read from the hash, of
 * which a program sees one version. */
static __always_inline struct rw_node_device *read_device(__u32 ifindex, struct rw_node_device *copy)
{
	__u32 index = ifindex & (RW_DEVICE_PLACES - 1);
	struct rw_node_device *place = bpf_map_lookup_elem(&device_places, &index);
	struct rw_node_device *device;
	__u32 version;

	if (place) {
		version = *(volatile __u32 *)&place->version;
		barrier();
		*copy = *place;
		barrier();
		if (copy->kind && copy->ifindex == ifindex && !(version & 1) && *(volatile __u32 *)&place->version == version)
			return place;
	}
	device = bpf_map_lookup_elem(&node_devices, &ifindex);
	if (device)
		*copy = *device;
	return device;
}

static __always_inline struct rw_node_address *find_address(const __u32 *words)
{
	struct address key;

	copy_address(key.words, words);
	return bpf_map_lookup_elem(&node_addresses, &key);
}

static __always_inline int is_pod(const struct rw_node_address *address)
{
	return address && address->kind == RW_ADDRESS_POD;
}

/* Whether an address is that of the pod behind a port, which knows most of them itself. */
static __always_inline int is_address_of(const __u32 *address, const struct rw_node_device *port, __u32 ifindex)
{
	const struct rw_node_address *found;

	if (same_address(address, port->address[is_mapped(address) ? 0 : 1]))
		return 1;
	found = find_address(address);
	return is_pod(found) && found->ifindex == ifindex;
}

static __always_inline int is_link_local(const __u32 *address)
{
	return (address[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* Multicast, or broadcast to everybody on the link. */
static __always_inline int is_group(const struct packet *pkt)
{
	if (pkt->ipv6)
		return (pkt->dst[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
	return (pkt->dst[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || pkt->dst[3] == 0xffffffff;
}

static __always_inline int is_udp(const struct packet *pkt, __u16 from, __u16 to)
{
	return pkt->protocol == IPPROTO_UDP && pkt->has_l4 && pkt->src_port == bpf_htons(from) &&
	       pkt->dst_port == bpf_htons(to);
}

/* Neighbour and router discovery is genuine only with hop limit 255 (RFC 4861 section 7.1): it was not routed here. */
static __always_inline int is_discovery(const struct packet *pkt)
{
	return pkt->ipv6 && pkt->protocol == IPPROTO_ICMPV6 && pkt->has_l4 && pkt->icmp_type >= 133 && pkt->icmp_type <= 137 &&
	       pkt->hops == 255;
}

/* ------------------------------------------------------------------ the flow cache */

#define ROTATE(x, bits) ((x) << (bits) | (x) >> (64 - (bits)))
#define SIP_ROUND(v0, v1, v2, v3)                                                                                        \
	do {                                                                                                             \
		v0 += v1;                                                                                                \
		v1 = ROTATE(v1, 13) ^ v0;                                                                                \
		v0 = ROTATE(v0, 32);                                                                                     \
		v2 += v3;                                                                                                \
		v3 = ROTATE(v3, 16) ^ v2;                                                                                \
		v0 += v3;                                                                                                \
		v3 = ROTATE(v3, 21) ^ v0;                                                                                \
		v2 += v1;                                                                                                \
		v1 = ROTATE(v1, 17) ^ v2;                                                                                \
		v2 = ROTATE(v2, 32);                                                                                     \
	} while (0)
#define SIP_WORD(word)                                                                                                   \
	do {                                                                                                             \
		__u64 m = (word);                                                                                        \
		v3 ^= m;                                                                                                 \
		SIP_ROUND(v0, v1, v2, v3);                                                                               \
		v0 ^= m;                                                                                                 \
	} while (0)

/* SipHash-1-3 of zone, protocol and original tuple. Of IPv4 only the words that differ are hashed; the last word tells the two
 * forms apart. */
static __always_inline __u64 hash_flow(const struct rw_node_config *config, const struct rw_ask *ask)
{
	const struct rw_tuple *t = &ask->original;
	__u64 v0 = config->secret[0] ^ 0x736f6d6570736575ull;
	__u64 v1 = config->secret[1] ^ 0x646f72616e646f6dull;
	__u64 v2 = config->secret[0] ^ 0x6c7967656e657261ull;
	__u64 v3 = config->secret[1] ^ 0x7465646279746573ull;
	__u64 last = (__u64)t->src_port | (__u64)t->dst_port << 16 | (__u64)ask->zone << 32 | (__u64)ask->protocol << 48;

	if (ask->ethertype == bpf_htons(ETH_P_IP)) {
		SIP_WORD((__u64)t->src[3] << 32 | t->dst[3]);
	} else {
		SIP_WORD((__u64)t->src[0] << 32 | t->src[1]);
		SIP_WORD((__u64)t->src[2] << 32 | t->src[3]);
		SIP_WORD((__u64)t->dst[0] << 32 | t->dst[1]);
		SIP_WORD((__u64)t->dst[2] << 32 | t->dst[3]);
		last |= 1ull << 56;
	}
	SIP_WORD(last);
	v2 ^= 0xff;
	SIP_ROUND(v0, v1, v2, v3);
	SIP_ROUND(v0, v1, v2, v3);
	SIP_ROUND(v0, v1, v2, v3);
	return v0 ^ v1 ^ v2 ^ v3;
}

/* Where the flow's entry may be. */
static __always_inline void find_buckets(const struct rw_node_config *config, struct rw_ask *ask)
{
	__u64 hash = hash_flow(config, ask);

	ask->signature = hash >> 32 ? hash >> 32 : 1;
	ask->buckets[0] = (__u32)hash & flow_bucket_mask;
	ask->buckets[1] = (ask->buckets[0] ^ ((__u32)(hash >> 32) * 0x5bd1e995u >> 8 | 1)) & flow_bucket_mask;
}

/* The way of a bucket that has a signature, of which a bucket has none twice; or RW_WAYS. */
static __always_inline __u32 find_way(__u32 number, __u32 signature)
{
	const volatile struct rw_flow_bucket *bucket = bpf_map_lookup_elem(&flow_buckets, &number);

	if (!bucket)
		return RW_WAYS;
#pragma unroll
	for (__u32 way = 0; way < RW_WAYS; way++) {
		if (bucket->signatures[way] == signature)
			return way;
	}
	return RW_WAYS;
}

static __always_inline int epoch_holds(__u32 slot, __u32 epoch)
{
	const volatile __u32 *now = bpf_map_lookup_elem(&flow_epochs, &slot);

	/* One ahead: judged by a snapshot whose bump comes presently. */
	return now && epoch - *now <= 1;
}

/* Beside an action: the packet came in where its flow's came when it was asked about. */
#define SAME_WAY_IN 4
/* Beside an action: conntrack has the flow, but did not take the packet for one of it (a segment that is out of window). */
#define NOT_TAKEN_FOR_ITS 8
/* Of a decision: how far its entry's index is shifted. */
#define DECISION_BITS 4

/* What the entry at an index says of a flow, enum of RW_ACTION_*, and the bits above. A worker may be writing it: whatever is not whole
 * and the same before and after says nothing. */
static __always_inline int read_entry(__u32 index, const struct rw_ask *ask)
{
	struct rw_flow_entry *entry = bpf_map_lookup_elem(&flow_entries, &index);
	__u32 version;
	int action;

	if (!entry)
		return RW_ACTION_NONE;
	version = *(volatile __u32 *)&entry->version;
	barrier();
	if (version & 1)
		return RW_ACTION_NONE;
	if (entry->zone != ask->zone || entry->protocol != ask->protocol || !same_tuple(&entry->original, &ask->original) ||
	    !same_tuple(&entry->reply, &ask->reply))
		return RW_ACTION_NONE;
	if (entry->expires && bpf_ktime_get_coarse_ns() > entry->expires)
		return RW_ACTION_NONE;
	if (!epoch_holds(entry->slots[0], entry->epochs[0]) || !epoch_holds(entry->slots[1], entry->epochs[1]) ||
	    !epoch_holds(entry->slots[2], entry->epochs[2]))
		return RW_ACTION_NONE;
	action = entry->action;
	if (action == RW_ACTION_ALLOW && entry->provenance && entry->provenance == ask->in_ifindex)
		action |= SAME_WAY_IN;
	if (entry->flags & RW_FLOW_TRACKED && ask->conntrack == RW_UNTRACKED)
		action |= NOT_TAKEN_FOR_ITS;
	barrier();
	if (*(volatile __u32 *)&entry->version != version)
		return RW_ACTION_NONE;
	return (action & 3) == RW_ACTION_ALLOW || (action & 3) == RW_ACTION_DENY ? action : RW_ACTION_NONE;
}

/* Looks for the flow's decision; its entry's index times 16 plus what `read_entry` says, 0 without one. Global, so that the verifier looks at it
 * once. */
__noinline int find_decision(const struct rw_ask *ask)
{
	if (!ask)
		return RW_ACTION_NONE;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		__u32 bucket = ask->buckets[i];
		__u32 way = find_way(bucket, ask->signature);
		__u32 index = bucket * RW_WAYS + way;
		int action;

		if (way >= RW_WAYS)
			continue;
		action = read_entry(index, ask);
		if (action != RW_ACTION_NONE)
			return (int)(index << DECISION_BITS) | action;
	}
	return RW_ACTION_NONE;
}

#define TCP_FIN 1
#define TCP_RST 4

/* Whether a segment closes its connection, as it says: conntrack knows the sequence numbers, lets some that do not fit pass, and its
 * state is then what it was. Global, so that the verifier looks at it once. */
__noinline int is_believed(struct __sk_buff *skb)
{
	const struct sk_buff *kernel_skb = (void *)skb;
	const struct nf_conn *connection;
	unsigned long nfct;
	__u8 state;

	if (bpf_probe_read_kernel(&nfct, sizeof(nfct), &kernel_skb->_nfct))
		return 0;
	connection = (void *)(nfct & ~CT_INFO_MASK);
	if (!connection || bpf_probe_read_kernel(&state, sizeof(state), &connection->proto.tcp.state))
		return 0;
	return state != CT_TCP_ESTABLISHED;
}

/* Notes a packet of a flow in its entry. Segments that leave as one count as what they will be on the wire. */
static __always_inline void use_flow(struct __sk_buff *skb, const struct packet *pkt, const struct rw_ask *ask, int decision)
{
	__u32 index = (__u32)decision >> DECISION_BITS;
	struct rw_flow_usage *usage = bpf_map_lookup_elem(&flow_usage, &index);
	__u32 direction = ask->conntrack == RW_REPLY;
	__u32 segments = skb->gso_segs ? skb->gso_segs : 1;
	__u32 tick = bpf_jiffies64();

	if (!usage)
		return;
	__sync_fetch_and_add(&usage->packets[direction], segments);
	__sync_fetch_and_add(&usage->bytes[direction], skb->wire_len - segments * pkt->l3);
	/* The clock is a call, and coarse: it goes on with the tick, which is a load. */
	if (usage->tick != tick) {
		usage->tick = tick;
		usage->last_seen = bpf_ktime_get_coarse_ns();
	}
	/* A forged reset ends nothing. */
	if (decision & NOT_TAKEN_FOR_ITS)
		return;
	if (pkt->tcp_flags & (TCP_FIN | TCP_RST) && ask->conntrack != RW_UNTRACKED && !is_believed(skb))
		return;
	if ((usage->tcp_flags[direction] | pkt->tcp_flags) != usage->tcp_flags[direction])
		usage->tcp_flags[direction] |= pkt->tcp_flags;
}

/* ------------------------------------------------------------------ whose packet it is */

static __always_inline void invert(struct rw_tuple *to, const struct rw_tuple *from)
{
	copy_address(to->src, from->dst);
	copy_address(to->dst, from->src);
	to->src_port = from->dst_port;
	to->dst_port = from->src_port;
}

/* The packet's own addresses as its connection: what conntrack would say without NAT. */
static __always_inline void use_own_tuple(const struct packet *pkt, struct rw_ask *ask)
{
	ask->conntrack = RW_UNTRACKED;
	ask->zone = 0;
	ask->protocol = pkt->protocol;
	copy_address(ask->original.src, pkt->src);
	copy_address(ask->original.dst, pkt->dst);
	ask->original.src_port = pkt->src_port;
	ask->original.dst_port = pkt->dst_port;
	invert(&ask->reply, &ask->original);
	if (is_icmp(pkt)) {
		ask->reply.src_port = pkt->src_port;
		ask->reply.dst_port = bpf_htons((__u16)inverse_icmp_type(pkt) << 8 | pkt->icmp_code);
	}
}

static __always_inline void read_ct_tuple(struct rw_tuple *to, const struct ct_tuple *from)
{
	if (from->family == AF_INET) {
		map_ip4(to->src, from->src[0]);
		map_ip4(to->dst, from->dst[0]);
	} else {
		copy_address(to->src, from->src);
		copy_address(to->dst, from->dst);
	}
	to->src_port = from->src_port;
	to->dst_port = from->dst_port;
}

/* Both are no calls: the verifier puts a move in their place. */
extern void *bpf_rdonly_cast(const void *object, __u32 type) __ksym __weak;
extern void *bpf_cast_to_kern_ctx(void *context) __ksym __weak;

/* 16 bytes: a type by which kernel memory can be read, which every kernel has in its own type information. That of conntrack's
 * structures may be a module's, of which the cast takes none. */
struct in6_addr___of_kernel {
} __attribute__((preserve_access_index));

#define CAST_16_BYTES(at) bpf_rdonly_cast((const void *)(at), bpf_core_type_id_kernel(struct in6_addr___of_kernel))

/* The same of a tuple in the kernel's memory. Answers its protocol. */
static __always_inline __u8 cast_ct_tuple(struct rw_tuple *to, const struct ct_tuple *at)
{
	const struct {
		__u32 src[4];
	} *first = CAST_16_BYTES(at);
	const struct {
		__u16 src_port;
		__u16 family;
		__u32 dst[3];
	} *second = CAST_16_BYTES(&at->src_port);
	const struct {
		__u32 dst_3;
		__u16 dst_port;
		__u8 protocol;
	} *third = CAST_16_BYTES(&at->dst[3]);

	if (second->family == AF_INET) {
		map_ip4(to->src, first->src[0]);
		map_ip4(to->dst, second->dst[0]);
	} else {
		copy_address(to->src, first->src);
		to->dst[0] = second->dst[0];
		to->dst[1] = second->dst[1];
		to->dst[2] = second->dst[2];
		to->dst[3] = third->dst_3;
	}
	to->src_port = second->src_port;
	to->dst_port = third->dst_port;
	return third->protocol;
}

/* Whether the packet is what leaves this host for a connection in a direction: NAT that conntrack does not know would show here. */
static __always_inline int is_of_connection(const struct packet *pkt, const struct rw_ask *ask)
{
	int to_original = ask->conntrack == RW_REPLY || ask->conntrack == RW_RELATED_REPLY;
	const struct rw_tuple *other = to_original ? &ask->original : &ask->reply;

	if (!same_address(pkt->dst, other->src))
		return 0;
	if (ask->conntrack == RW_RELATED_ORIGINAL || ask->conntrack == RW_RELATED_REPLY)
		return 1; /* an error may come from anywhere on the way, and is of another protocol */
	if (!same_address(pkt->src, other->dst) || pkt->protocol != ask->protocol)
		return 0;
	if (!pkt->has_l4)
		return 1;
	if (is_icmp(pkt))
		return pkt->src_port == other->src_port;
	return !has_ports(pkt->protocol) || (pkt->src_port == other->dst_port && pkt->dst_port == other->src_port);
}

/* The packet's pointer to its connection, with the kernel's state number in the low bits. */
static __always_inline unsigned long read_nfct(struct __sk_buff *skb)
{
	/* What a program gets is the kernel's own structure; the verifier allows another view of it to reads of kernel memory. */
	const struct sk_buff *kernel_skb = (void *)skb;
	unsigned long nfct;

	if (has_casts) {
		kernel_skb = bpf_cast_to_kern_ctx(skb);
		return kernel_skb->_nfct;
	}
	return bpf_probe_read_kernel(&nfct, sizeof(nfct), &kernel_skb->_nfct) ? 0 : nfct;
}

/* Fills in the connection that conntrack has the packet in. Answers 0 where it has it in none, else the kernel's state number + 1.
 * Global, so that the verifier looks at it once. */
__noinline int read_conntrack(struct __sk_buff *skb, struct rw_ask *ask)
{
	unsigned long nfct = read_nfct(skb);
	struct nf_conn *connection = (void *)(nfct & ~CT_INFO_MASK);
	__u32 info = nfct & CT_INFO_MASK;
	struct ct_tuples tuples;
	__u16 zone = 0;

	if (!ask || !connection || info == CT_UNTRACKED)
		return 0;
	if (has_casts) {
		const struct ct_tuples *hashes = (void *)&connection->tuplehash;

		if (bpf_core_field_exists(connection->zone))
			zone = *(__u16 *)CAST_16_BYTES(&connection->zone.id);
		ask->zone = zone;
		ask->protocol = cast_ct_tuple(&ask->original, &hashes->hash[0].tuple);
		cast_ct_tuple(&ask->reply, &hashes->hash[1].tuple);
		return info + 1;
	}
	if (bpf_probe_read_kernel(&tuples, sizeof(tuples), &connection->tuplehash))
		return 0;
	if (bpf_core_field_exists(connection->zone) && bpf_probe_read_kernel(&zone, sizeof(zone), &connection->zone.id))
		return 0;
	ask->zone = zone;
	ask->protocol = tuples.hash[0].tuple.protocol;
	read_ct_tuple(&ask->original, &tuples.hash[0].tuple);
	read_ct_tuple(&ask->reply, &tuples.hash[1].tuple);
	return info + 1;
}

/* Fills in the packet's connection: conntrack's, where it has one that the packet is of, or the packet's own addresses. */
static __always_inline void read_connection(struct __sk_buff *skb, const struct packet *pkt, struct rw_ask *ask)
{
	int info = read_conntrack(skb, ask) - 1;

	if (info >= 0) {
		int error = is_icmp_error(pkt) && (info == CT_RELATED || info == CT_RELATED_REPLY);

		if (info >= CT_REPLY)
			ask->conntrack = error ? RW_RELATED_REPLY : RW_REPLY;
		else
			ask->conntrack = error ? RW_RELATED_ORIGINAL : RW_ORIGINAL;
		if (is_of_connection(pkt, ask)) {
			if (ask->protocol == IPPROTO_TCP && info != CT_NEW)
				ask->flags |= RW_ASK_MIDSTREAM;
			return;
		}
		count(RW_NOTE_CT_MISMATCH, skb->len, 0);
	} else {
		count(RW_NOTE_UNTRACKED, skb->len, 0);
	}
	use_own_tuple(pkt, ask);
}

/* ------------------------------------------------------------------ from_pod */

/* ARP for IPv4 over Ethernet: RFC 826. */
struct arp {
	__u16 hardware;
	__u16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__u16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
};

static __always_inline int is_mac_of(const __u8 *mac, const struct rw_node_device *device)
{
#pragma unroll
	for (int i = 0; i < 6; i++) {
		if (mac[i] != device->mac[i])
			return 0;
	}
	return 1;
}


static __always_inline __u32 check_arp(struct __sk_buff *skb, const struct rw_node_device *device)
{
	struct arp arp;
	__u32 sender;
	__u32 mapped[4];

	if (bpf_skb_load_bytes(skb, ETH_BYTES, &arp, sizeof(arp)))
		return RW_POD_MALFORMED;
	if (arp.hardware != bpf_htons(1) || arp.protocol != bpf_htons(ETH_P_IP) || arp.hardware_length != 6 ||
	    arp.protocol_length != 4)
		return RW_POD_MALFORMED;
	__builtin_memcpy(&sender, arp.sender, 4);
	map_ip4(mapped, sender);
	/* 0.0.0.0 asks whether an address is free (RFC 5227). */
	if (!is_mac_of(arp.sender_mac, device) || (sender && !is_address_of(mapped, device, skb->ifindex)))
		return RW_POD_SPOOFED_ARP;
	return RW_POD_LINK;
}

/* Options of discovery that may stand before or after the link-layer address. */
#define MAX_DISCOVERY_OPTIONS 4

/* A pod's discovery: it speaks for its own addresses, and names its own link-layer address. Global, so that the verifier looks at it
 * once. */
__noinline int check_discovery(struct __sk_buff *skb, const struct packet *pkt, const struct rw_node_device *device)
{
	__u32 target[4];
	__u32 offset;

	if (!pkt || !device)
		return RW_POD_MALFORMED;
	if (pkt->icmp_type == 134 || pkt->icmp_type == 137)
		return RW_POD_ROUTER;
	if (pkt->icmp_type == 136) {
		if (bpf_skb_load_bytes(skb, pkt->l4 + 8, target, sizeof(target)))
			return RW_POD_MALFORMED;
		/* Of addresses of the link only the one that it sends from can be told to be its own. */
		if (!is_address_of(target, device, skb->ifindex) && !(is_link_local(target) && same_address(target, pkt->src)))
			return RW_POD_SPOOFED_NEIGHBOUR;
	}
	offset = pkt->l4 + (pkt->icmp_type == 133 ? 8 : 24);
	for (int i = 0; i < MAX_DISCOVERY_OPTIONS; i++) {
		__u8 option[8];

		if (offset >= skb->len || bpf_skb_load_bytes(skb, offset, option, sizeof(option)))
			return RW_POD_LINK;
		if ((option[0] == 1 || option[0] == 2) && !is_mac_of(option + 2, device))
			return RW_POD_SPOOFED_NEIGHBOUR;
		if (!option[1])
			return RW_POD_MALFORMED;
		offset += option[1] * 8;
	}
	return offset >= skb->len ? RW_POD_LINK : RW_POD_MALFORMED;
}

/* Whether IPv4 options name a way that the packet is to take: RFC 791, loose (131) and strict (137). Options that are not understood
 * as a list count as one. Global, so that the verifier looks at it once. */
__noinline int has_source_route(struct __sk_buff *skb, __u32 offset, __u32 length)
{
	for (int i = 0; i < 40; i++) {
		__u8 kind;
		__u8 size;

		if (!length)
			return 0;
		if (bpf_skb_load_bytes(skb, offset, &kind, 1))
			return 1;
		if (kind == 0)
			return 0;
		if (kind == 1) {
			size = 1;
		} else if (kind == 131 || kind == 137 || bpf_skb_load_bytes(skb, offset + 1, &size, 1) || size < 2 ||
			   size > length) {
			return 1;
		}
		offset += size;
		length -= size;
	}
	return 0;
}

/* What may hold another packet, which this host or another node would take out. */
static __always_inline int is_encapsulated(const struct rw_node_config *config, const struct packet *pkt)
{
	switch (pkt->protocol) {
	case 4:		/* IPIP */
	case 41:	/* IPv6 */
	case 47:	/* GRE */
	case 97:	/* EtherIP */
	case 115:	/* L2TP */
	case 137:	/* MPLS */
		return 1;
	case IPPROTO_UDP:
		break;
	default:
		return 0;
	}
	if (!pkt->has_l4)
		return 0; /* without its first fragment, which has ports, nobody takes the rest */
#pragma unroll
	for (int i = 0; i < RW_MAX_OVERLAY_PORTS; i++) {
		__u16 port = config->overlay_ports[i];

		if (!port)
			break;
		if (pkt->dst_port == port)
			return 1;
	}
	return 0;
}

/* What a pod tells its link to get or keep an address: DHCP of a client, discovery, listener reports. */
static __always_inline int is_pods_multicast_report(const struct packet *pkt)
{
	return pkt->ipv6 && pkt->protocol == IPPROTO_ICMPV6 && pkt->has_l4 &&
	       (pkt->icmp_type == 131 || pkt->icmp_type == 132 || pkt->icmp_type == 143);
}

static __always_inline int is_dhcp_client(const struct packet *pkt)
{
	if (!pkt->ipv6)
		return pkt->dst[3] == 0xffffffff && is_udp(pkt, 68, 67);
	/* ff02::1:2, RFC 8415 section 7.1 */
	return is_udp(pkt, 546, 547) && pkt->dst[0] == bpf_htonl(0xff020000) && pkt->dst[1] == 0 && pkt->dst[2] == 0 &&
	       pkt->dst[3] == bpf_htonl(0x00010002);
}

/* No address yet. */
static __always_inline int is_unspecified(const struct packet *pkt)
{
	return pkt->src[0] == 0 && pkt->src[1] == 0 && pkt->src[3] == 0 && (pkt->src[2] == 0 || !pkt->ipv6);
}

/* Conntrack's own look-up; where conntrack is not there, neither is this. */
struct ct_options {
	__s32 netns;
	__s32 error;
	__u8 protocol;
	__u8 direction;
	__u8 reserved[2];
};

/* The kernel's own name of what `ct_options` is: it has the look-up if it has this. Linux 6.1 takes no address of a function for a
 * question. */
struct bpf_ct_opts___exists {
} __attribute__((preserve_access_index));

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
					 struct ct_options *options, __u32 options_size) __ksym __weak;
extern void bpf_ct_release(struct nf_conn *connection) __ksym __weak;

/* Whether conntrack has the connection of a packet that it has not seen yet. Global, so that the verifier looks at it once. */
__noinline int is_tracked(struct __sk_buff *skb, const struct packet *pkt)
{
	struct ct_options options = { .netns = BPF_F_CURRENT_NETNS };
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *connection;

	if (!pkt || !bpf_core_type_exists(struct bpf_ct_opts___exists))
		return 0;
	options.protocol = pkt->protocol;
	if (pkt->ipv6) {
		copy_address(tuple.ipv6.saddr, pkt->src);
		copy_address(tuple.ipv6.daddr, pkt->dst);
		tuple.ipv6.sport = pkt->src_port;
		tuple.ipv6.dport = pkt->dst_port;
		connection = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv6), &options, sizeof(options));
	} else {
		tuple.ipv4.saddr = pkt->src[3];
		tuple.ipv4.daddr = pkt->dst[3];
		tuple.ipv4.sport = pkt->src_port;
		tuple.ipv4.dport = pkt->dst_port;
		connection = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &options, sizeof(options));
	}
	if (!connection)
		return 0;
	bpf_ct_release(connection);
	return 1;
}

/* Whether a device has a token. Global, so that the verifier looks at it once. */
__noinline int has_token(__u32 subject)
{
	const struct rw_node_config *config = get_config();
	const __u64 *until = bpf_map_lookup_elem(&ask_tokens, &subject);
	__u64 interval;

	if (!config || !until)
		return 1;
	interval = config->ask_interval_ns;
	return !interval || *until + interval <= bpf_ktime_get_ns() + interval * config->ask_burst;
}

/* Takes one of a device's tokens, which it has. Two CPUs at once may take one for two, no more. Global, so that the verifier looks at it once. */
__noinline int take_token(__u32 subject)
{
	const struct rw_node_config *config = get_config();
	__u64 *until = bpf_map_lookup_elem(&ask_tokens, &subject);
	__u64 now = bpf_ktime_get_ns();

	if (!config || !config->ask_interval_ns)
		return 0;
	if (!until) {
		now += config->ask_interval_ns;
		bpf_map_update_elem(&ask_tokens, &subject, &now, BPF_NOEXIST);
		return 0;
	}
	*until = (*until > now ? *until : now) + config->ask_interval_ns;
	return 0;
}

/* The queue of the ask pair: the same for both directions of a pair of addresses. */
static __always_inline __u32 find_queue(const struct rw_node_config *config, const struct rw_ask *ask)
{
	const struct rw_tuple *t = &ask->original, *r = &ask->reply;
	__u32 hash = t->src[0] ^ t->src[1] ^ t->src[2] ^ t->src[3] ^ r->src[0] ^ r->src[1] ^ r->src[2] ^ r->src[3];

	hash *= 0x9e3779b1u;
	return config->ask_queues > 1 ? (hash >> 16) % config->ask_queues : 0;
}

/* Frames that a packet comes to on the ask pair, which cuts it up. */
static __always_inline __u32 count_frames(const struct __sk_buff *skb)
{
	return skb->gso_segs ? skb->gso_segs : 1;
}

/* Whether the worker of a queue has dealt with a ticket. */
static __always_inline int is_taken(const struct rw_ask_queue *queue, __u32 ticket)
{
	return (__s32)(*(volatile __u32 *)&queue->taken - ticket) >= 0;
}

/* Whether nothing of a device's share has been taken for as long as workers count as alive. Then all of it has been lost. */
static __always_inline int is_lost(const struct rw_node_config *config, const struct ask_share *share, __u64 now)
{
	return now - share->progress > config->stale_ns;
}

/* Whether so many more frames of a device may wait on a queue. Its share is a part of the places that are free: the more devices have asks there,
 * the fewer each may have, and some places always stay free. One frame may wait in any case: its ticket, once taken, tells that what
 * was lost before it waits no longer. */
static __always_inline int has_places(const struct rw_node_config *config, const struct rw_ask_queue *queue,
				      const struct ask_share *share, __u32 frames, __u64 now)
{
	__u32 waiting = *(volatile __u32 *)&queue->issued - *(volatile __u32 *)&queue->taken;
	__u32 limit = waiting < config->ask_places ? (config->ask_places - waiting) / RW_ASK_SHARE : 0;
	__u32 own = frames;

	if (!config->ask_places)
		return 1;
	if (!is_lost(config, share, now)) {
		own += is_taken(queue, share->older_ticket) ? 0 : share->older;
		own += is_taken(queue, share->newer_ticket) ? 0 : share->newer;
	}
	return own <= 1 || own <= limit;
}

/* Whether so many more frames of a device may wait on a queue. Global, so that the verifier looks at it once. */
__noinline int may_wait(__u32 ifindex, __u32 number, __u32 frames)
{
	struct ask_share_key key = { .ifindex = ifindex, .queue = number };
	const struct rw_node_config *config = get_config();
	const struct rw_ask_queue *queue = bpf_map_lookup_elem(&ask_queues, &number);
	const struct ask_share *share = bpf_map_lookup_elem(&ask_shares, &key);

	return !config || !queue || !share || has_places(config, queue, share, frames, bpf_ktime_get_ns());
}

/* Of a device that has nothing waiting. */
static const struct ask_share no_share = {};

static __always_inline struct ask_share *find_share(const struct ask_share_key *key)
{
	struct ask_share *share = bpf_map_lookup_elem(&ask_shares, key);

	if (share)
		return share;
	bpf_map_update_elem(&ask_shares, key, &no_share, BPF_NOEXIST);
	return bpf_map_lookup_elem(&ask_shares, key);
}

/* Draws a ticket for an ask of so many frames and notes it in the share of its device. Two CPUs at once may note one for two, no more.
 * 0, or the outcome if it may not wait. Global, so that the verifier looks at it once. */
__noinline int draw_ticket(struct rw_ask *ask, __u32 frames)
{
	const struct rw_node_config *config;
	struct rw_ask_queue *queue;
	struct ask_share_key key;
	struct ask_share *share;
	__u64 now;

	if (!ask)
		return RW_EXIT_ASK_FAILED;
	key.ifindex = ask->subject;
	key.queue = ask->queue;
	queue = bpf_map_lookup_elem(&ask_queues, &key.queue);
	share = find_share(&key);
	config = get_config();
	if (!queue || !share || !config)
		return RW_EXIT_ASK_FAILED;
	now = bpf_ktime_get_ns();
	if (!has_places(config, queue, share, frames, now))
		return RW_EXIT_ASK_QUEUE;
	if (is_taken(queue, share->newer_ticket) || is_lost(config, share, now)) {
		share->older = 0;
		share->newer = 0;
		share->progress = now;
	} else if (!share->older || is_taken(queue, share->older_ticket)) {
		share->older = share->newer;
		share->older_ticket = share->newer_ticket;
		share->newer = 0;
		share->progress = now;
	}
	ask->ticket = __sync_fetch_and_add(&queue->issued, frames) + frames;
	share->newer += frames;
	share->newer_ticket = ask->ticket;
	return 0;
}

/* A pod of which something was refused within a second. What is known goes on; what is denied, or new and without a token, ends
 * here, before conntrack makes an entry of it. By a translated address it is not known here what comes of it, so a
 * denial counts without NAT alone. */
static __always_inline __u32 check_refused(struct __sk_buff *skb, const struct rw_node_config *config,
					   const struct rw_node_device *device, const struct packet *pkt)
{
	const struct rw_node_address *to;
	struct rw_ask ask;
	int action, token, place;

	if (!device->refused_ms)
		return RW_POD_PASSED;
	if ((__u32)(bpf_ktime_get_coarse_ns() / 1000000) - device->refused_ms > 1000)
		return RW_POD_PASSED;
	__builtin_memset(&ask, 0, sizeof(ask));
	ask.ethertype = pkt->ethertype;
	use_own_tuple(pkt, &ask);
	find_buckets(config, &ask);
	/* Of a later fragment nobody can tell here what it is of: it goes on as what is new does. */
	action = pkt->fragment == LATER_FRAGMENT ? RW_ACTION_NONE : find_decision(&ask) & 3;
	if (action == RW_ACTION_DENY)
		return RW_POD_DENIED;
	token = has_token(skb->ifindex);
	place = may_wait(skb->ifindex, find_queue(config, &ask), count_frames(skb));
	if (action == RW_ACTION_ALLOW || (token && place))
		return RW_POD_PASSED;
	to = find_address(pkt->dst);
	if (to && to->kind == RW_ADDRESS_HOST)
		return RW_POD_PASSED; /* nobody is asked about it */
	if (pkt->fragment != LATER_FRAGMENT && is_tracked(skb, pkt))
		return RW_POD_PASSED;
	return token ? RW_POD_ASK_QUEUE : RW_POD_ASK_LIMIT;
}

/* Discovery with addresses of the link makes entries in the kernel's tables of neighbours, under whatever addresses a pod claims, and
 * those tables are one for all of a machine (net.*.neigh.default.gc_thresh3). So a pod may send DISCOVERY_BURST at once
 * and one in DISCOVERY_INTERVAL_MS. */
#define DISCOVERY_INTERVAL_MS 125
#define DISCOVERY_BURST 32

static __always_inline int within_discovery_limit(struct rw_node_device *kept)
{
	__u32 now = bpf_ktime_get_coarse_ns() / 1000000;
	/* How far what was heard reaches ahead of now; more than a burst: it is long over. Two CPUs at once may count one for
	 * two, no more. */
	__u32 ahead = kept->discovery_until - now;

	if (ahead > DISCOVERY_BURST * DISCOVERY_INTERVAL_MS)
		ahead = 0;
	if (ahead + DISCOVERY_INTERVAL_MS > DISCOVERY_BURST * DISCOVERY_INTERVAL_MS)
		return 0;
	kept->discovery_until = now + ahead + DISCOVERY_INTERVAL_MS;
	return 1;
}

static __always_inline __u32 judge_sent(struct __sk_buff *skb, const struct rw_node_config *config,
					const struct rw_node_device *device, struct rw_node_device *kept)
{
	int no_link = device->flags & RW_DEVICE_NO_LINK;
	struct packet pkt;
	int kind;

	__builtin_memset(&pkt, 0, sizeof(pkt));
	kind = parse(skb, &pkt, no_link);
	if (!no_link && !is_mac_of(pkt.mac, device))
		return RW_POD_SPOOFED_MAC;
	if (pkt.tagged)
		return RW_POD_TAGGED;
	if (kind == KIND_MALFORMED)
		return RW_POD_MALFORMED;
	if (kind == KIND_OTHER)
		return RW_POD_ETHERTYPE;
	if (kind == KIND_ARP)
		return check_arp(skb, device);

	if (pkt.routing || (pkt.options && has_source_route(skb, pkt.l3 + sizeof(struct ip4), pkt.options)))
		return RW_POD_SOURCE_ROUTE;
	if (is_encapsulated(config, &pkt))
		return RW_POD_ENCAPSULATED;

	if (!is_address_of(pkt.src, device, skb->ifindex)) {
		/* Before it has an address, and of addresses of the link, it may speak about the link alone. */
		if (!is_unspecified(&pkt) && !(pkt.ipv6 && is_link_local(pkt.src)))
			return RW_POD_SPOOFED_SOURCE;
		if (!is_discovery(&pkt) && !is_pods_multicast_report(&pkt) && !is_dhcp_client(&pkt))
			return RW_POD_SPOOFED_SOURCE;
	}
	if (is_discovery(&pkt)) {
		__u32 outcome = check_discovery(skb, &pkt, device);

		if (outcome == RW_POD_LINK && is_link_local(pkt.src) && !within_discovery_limit(kept))
			return RW_POD_LINK_LIMIT;
		return outcome;
	}
	if (is_icmp(&pkt) && pkt.icmp_type == (pkt.ipv6 ? 134 : 5))
		return RW_POD_ROUTER;
	if (is_group(&pkt) || pkt.to_group)
		return is_pods_multicast_report(&pkt) || is_dhcp_client(&pkt) ? RW_POD_LINK : RW_POD_GROUP;
	return check_refused(skb, config, device, &pkt);
}

SEC("tc")
int node_from_pod(struct __sk_buff *skb)
{
	struct rw_node_config *config = get_config();
	struct rw_node_device device, *kept;

	if (!config)
		return TC_ACT_SHOT;
	kept = read_device(skb->ifindex, &device);
	if (!kept || device.kind != RW_DEVICE_POD)
		return conclude(config, RW_POD_UNKNOWN_DEVICE, skb->len);
	return conclude(config, judge_sent(skb, config, &device, kept), skb->len);
}

/* ------------------------------------------------------------------ from_net */

SEC("tc")
int node_from_net(struct __sk_buff *skb)
{
	struct rw_node_config *config = get_config();
	struct rw_node_device *device;
	struct packet pkt;

	if (!config)
		return TC_ACT_SHOT;
	device = find_device(skb->ifindex);
	if (!device)
		return conclude(config, RW_NET_UNKNOWN_DEVICE, skb->len);
	__builtin_memset(&pkt, 0, sizeof(pkt));
	/* A bridge passes up what its ports' pods send. What cannot be read, the kernel does not take. */
	if (device->kind != RW_DEVICE_BRIDGE && parse(skb, &pkt, device->flags & RW_DEVICE_NO_LINK) == KIND_IP &&
	    is_pod(find_address(pkt.src)))
		return conclude(config, RW_NET_SPOOFED_SOURCE, skb->len);
	return conclude(config, RW_NET_PASSED, skb->len);
}

/* ------------------------------------------------------------------ exit */

/* What is about the link itself and goes to a pod: discovery, a DHCP server's answer to everybody, listener queries. None of it comes
 * from another pod, which may send only a client's part. */
static __always_inline int is_link_packet(const struct packet *pkt)
{
	if (is_discovery(pkt) || is_dhcp_client(pkt) || is_pods_multicast_report(pkt))
		return 1;
	if (pkt->ipv6)
		return (pkt->protocol == IPPROTO_ICMPV6 && pkt->has_l4 && pkt->icmp_type == 130) ||
		       (is_link_local(pkt->src) && is_udp(pkt, 547, 546));
	return pkt->dst[3] == 0xffffffff && is_udp(pkt, 67, 68);
}

static __always_inline int is_related(const struct rw_ask *ask)
{
	return ask->conntrack == RW_RELATED_ORIGINAL || ask->conntrack == RW_RELATED_REPLY;
}

/* Whether a packet with a local pod's address came in where that pod is. */
static __always_inline int is_from_port_of(const struct rw_node_address *pod, __u32 in_ifindex)
{
	const struct rw_node_device *port;
	__u32 ifindex = pod->ifindex;

	if (in_ifindex == ifindex)
		return 1;
	port = find_device(ifindex);
	return port && port->master && port->master == in_ifindex;
}

/* Whose an end of the true pair is: without NAT it is one of the packet's, which have been looked up. */
static __always_inline const struct rw_node_address *find_end(const __u32 *end, const struct packet *pkt,
							       const struct rw_node_address *from,
							       const struct rw_node_address *to)
{
	if (same_address(end, pkt->src))
		return from;
	return same_address(end, pkt->dst) ? to : find_address(end);
}

static __always_inline int is_service_address(const __u32 *address)
{
	struct rw_service_key key = { .bits = 128 };

	copy_address(key.address, address);
	return bpf_map_lookup_elem(&service_cidrs, &key) != 0;
}

/* The device that pays for an ask: the port of the pod that sends, else of the one that receives. */
static __always_inline __u32 find_subject(const struct rw_ask *ask, const struct rw_node_address *src,
					  const struct rw_node_address *dst)
{
	int reversed = ask->conntrack == RW_REPLY || ask->conntrack == RW_RELATED_REPLY;
	const struct rw_node_address *sender = reversed ? dst : src, *receiver = reversed ? src : dst;

	if (is_pod(sender))
		return sender->ifindex;
	return is_pod(receiver) ? receiver->ifindex : ask->out_ifindex;
}

/* Makes `from_pod` look closer for a second. */
static __always_inline void note_refusal(const struct rw_ask *ask)
{
	struct rw_node_device *port = find_device(ask->subject);

	if (port)
		port->refused_ms = bpf_ktime_get_coarse_ns() / 1000000;
}

static __always_inline __u32 fail_mode(const struct rw_node_config *config)
{
	return config->flags & RW_NODE_FAIL_OPEN ? RW_EXIT_FAIL_OPEN : RW_EXIT_FAIL_CLOSED;
}

/* Puts the header in front of the frame. */
static __always_inline __u32 make_ask(struct __sk_buff *skb, const struct rw_node_config *config, struct rw_ask *ask)
{
	__u32 room = sizeof(*ask);

	if (!skb->gso_segs && config->ask_mtu && skb->len > config->ask_mtu)
		return RW_EXIT_ASK_FAILED;
	if (ask->flags & RW_ASK_NO_LINK)
		room += ETH_BYTES;
	ask->version = RW_ASK_VERSION;
	ask->nonce[0] = config->nonce[0];
	ask->nonce[1] = config->nonce[1];
	if (bpf_skb_change_head(skb, room, 0) || bpf_skb_store_bytes(skb, 0, ask, sizeof(*ask), 0))
		return RW_EXIT_ASK_FAILED;
	if (ask->flags & RW_ASK_NO_LINK && bpf_skb_store_bytes(skb, sizeof(*ask) + 12, &ask->ethertype, 2, 0))
		return RW_EXIT_ASK_FAILED;
	skb->queue_mapping = ask->queue + 1; /* as if it had come in by this queue */
	return RW_EXIT_ASKED;
}

/* No decision is cached: asks for one, if somebody is there to be asked. */
static __always_inline __u32 ask_worker(struct __sk_buff *skb, const struct rw_node_config *config,
					const struct rw_node_pulse *pulse, struct rw_ask *ask)
{
	__u32 queue = find_queue(config, ask);
	int refusal;

	ask->queue = queue;
	if (!(config->flags & RW_NODE_ENFORCING) || !bpf_map_lookup_elem(&ask_sockets, &queue))
		return fail_mode(config);
	if ((__s64)(bpf_ktime_get_ns() - pulse->workers) > (__s64)config->stale_ns)
		return fail_mode(config);
	if (!has_token(ask->subject))
		return RW_EXIT_ASK_LIMIT;
	refusal = draw_ticket(ask, count_frames(skb));
	if (refusal)
		return refusal;
	take_token(ask->subject);
	return make_ask(skb, config, ask);
}

/* An ICMP error about a flow: from a pod only if it is an end of it, and not as a way to carry more than an error. */
static __always_inline __u32 check_related(struct __sk_buff *skb, const struct packet *pkt, const struct rw_ask *ask,
					   int from_pod)
{
	if (from_pod && !same_address(pkt->src, ask->original.src) && !same_address(pkt->src, ask->reply.src))
		return RW_EXIT_RELATED_FOREIGN;
	/* RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c). */
	if (skb->len - pkt->l3 > (pkt->ipv6 ? 1280 : 576))
		return RW_EXIT_RELATED_TOO_LONG;
	return 0;
}

/* Whether what came in by a device is of a pod of this node in any case. */
static __always_inline int comes_from_pods(__u32 in_ifindex)
{
	const struct rw_node_device *device;

	if (!in_ifindex)
		return 0;
	device = find_device(in_ifindex);
	return device && (device->kind == RW_DEVICE_POD || device->flags & RW_DEVICE_PODS_ALONE);
}

static __always_inline __u32 hit(struct __sk_buff *skb, const struct packet *pkt, const struct rw_ask *ask, int decision)
{
	/* The device of a VLAN has counted the packet before the one that it is on. */
	if (!pkt->tagged)
		use_flow(skb, pkt, ask, decision);
	return RW_EXIT_HIT;
}

static __always_inline __u32 judge_leaving(struct __sk_buff *skb, const struct rw_node_config *config,
					   const struct rw_node_device *device)
{
	const struct rw_node_address *src, *dst, *from, *to;
	const struct rw_node_pulse *pulse;
	int decision = RW_ACTION_NONE;
	struct packet pkt;
	struct rw_ask ask;
	__u32 zero = 0;
	__u32 outcome;
	int holds;
	int kind;

	__builtin_memset(&pkt, 0, sizeof(pkt));
	kind = parse(skb, &pkt, device->flags & RW_DEVICE_NO_LINK);
	if (kind == KIND_MALFORMED)
		return RW_EXIT_MALFORMED;
	if (kind == KIND_ARP)
		return RW_EXIT_LINK;
	if (kind == KIND_OTHER)
		return device->kind == RW_DEVICE_POD && skb->ingress_ifindex ? RW_EXIT_ETHERTYPE : RW_EXIT_NOT_IP;

	if (device->kind == RW_DEVICE_POD) {
		/* A bridge floods what it does not know to every port. */
		if (is_link_packet(&pkt))
			return RW_EXIT_LINK;
		if (is_group(&pkt) || pkt.to_group)
			return RW_EXIT_GROUP;
		if (!is_address_of(pkt.dst, device, skb->ifindex)) {
			if (!skb->ingress_ifindex && is_link_local(pkt.dst))
				return RW_EXIT_OWN_STACK;
			return RW_EXIT_NOT_ITS_ADDRESS;
		}
	}
	if (skb->ingress_ifindex == config->ask_ifindex && config->ask_ifindex)
		return RW_EXIT_RETURNED; /* `back` lets only workers send there */

	__builtin_memset(&ask, 0, sizeof(ask));
	ask.out_ifindex = skb->ifindex;
	ask.in_ifindex = skb->ingress_ifindex;
	ask.ethertype = pkt.ethertype;
	read_connection(skb, &pkt, &ask);

	find_buckets(config, &ask);
	pulse = bpf_map_lookup_elem(&node_pulse, &zero);
	holds = pulse && !(pulse->lease && bpf_ktime_get_coarse_ns() > pulse->lease);
	/* Without conntrack, a fragment's ports are in another packet. */
	if (holds && (pkt.fragment == WHOLE || ask.conntrack != RW_UNTRACKED))
		decision = find_decision(&ask);
	/* That one end may begin associations says nothing about the other. */
	if (pkt.sctp_init && ask.conntrack != RW_ORIGINAL && (decision & 3) == RW_ACTION_ALLOW)
		decision = RW_ACTION_NONE;
	/* Most packets end here. What follows has been looked at when the flow was asked about: that its source is where it comes
	 * from, and that it is none of this host's stack, of the link or of a group. */
	if ((decision & 3) == RW_ACTION_ALLOW && !is_related(&ask) &&
	    (decision & SAME_WAY_IN || (ask.conntrack == RW_REPLY && ask.in_ifindex)))
		return hit(skb, &pkt, &ask, decision);

	to = find_address(pkt.dst);
	from = find_address(pkt.src);
	src = find_end(ask.original.src, &pkt, from, to);
	dst = find_end(ask.reply.src, &pkt, from, to);
	if (!is_pod(src) && !is_pod(dst) && !is_pod(from) && !is_pod(to)) {
		/* What carries packets past conntrack may have translated or encrypted it: whose it is, nobody knows any more. */
		return comes_from_pods(ask.in_ifindex) && !is_link_packet(&pkt) ? RW_EXIT_SPOOFED_SOURCE : RW_EXIT_NO_POD;
	}

	if (!ask.in_ifindex) {
		if (ask.conntrack > RW_ORIGINAL || (src && src->kind == RW_ADDRESS_HOST))
			return RW_EXIT_OWN_STACK;
		/* A proxy that speaks with a pod's address is judged as that pod. */
	} else if (ask.conntrack <= RW_ORIGINAL && src &&
		   (src->kind == RW_ADDRESS_HOST || !is_from_port_of(src, ask.in_ifindex))) {
		/* The kernel itself takes this host's addresses for foreign ones in IPv4 alone. */
		return RW_EXIT_SPOOFED_SOURCE;
	}
	if (is_link_packet(&pkt))
		return RW_EXIT_LINK;
	if (is_group(&pkt))
		return RW_EXIT_GROUP;
	if (is_related(&ask)) {
		outcome = check_related(skb, &pkt, &ask, is_pod(from));
		if (outcome)
			return outcome;
	}

	ask.subject = find_subject(&ask, src, dst);
	if (!holds)
		return fail_mode(config);
	if ((decision & 3) == RW_ACTION_ALLOW)
		return is_related(&ask) ? RW_EXIT_RELATED : hit(skb, &pkt, &ask, decision);
	if ((decision & 3) == RW_ACTION_DENY) {
		note_refusal(&ask);
		return RW_EXIT_DENIED;
	}

	/* Not on every packet: what has a decision was not such an address when it was asked. */
	if (is_pod(src) && ask.conntrack <= RW_ORIGINAL && same_address(ask.original.dst, ask.reply.src) &&
	    is_service_address(ask.original.dst))
		return RW_EXIT_SERVICE_UNRESOLVED;
	if (pkt.tagged)
		return RW_EXIT_TAGGED; /* the tag would be lost on the way; the VLAN's own device has asked before */
	if (is_pod(src))
		ask.flags |= RW_ASK_SRC_LOCAL;
	if (is_pod(dst))
		ask.flags |= RW_ASK_DST_LOCAL;
	if (device->flags & RW_DEVICE_NO_LINK)
		ask.flags |= RW_ASK_NO_LINK;
	if (pkt.fragment == WHOLE && !is_icmp_error(&pkt) && (pkt.has_l4 || (!has_ports(pkt.protocol) && !is_icmp(&pkt))))
		ask.flags |= RW_ASK_CACHEABLE;
	outcome = ask_worker(skb, config, pulse, &ask);
	if (outcome == RW_EXIT_ASK_LIMIT || outcome == RW_EXIT_ASK_QUEUE)
		note_refusal(&ask);
	return outcome;
}

SEC("tc")
int node_exit(struct __sk_buff *skb)
{
	struct rw_node_config *config = get_config();
	struct rw_node_device device;
	__u32 bytes = skb->len;
	__u32 outcome;

	if (!config)
		return TC_ACT_SHOT;
	if (!read_device(skb->ifindex, &device))
		return conclude(config, RW_EXIT_UNKNOWN_DEVICE, bytes);
	outcome = judge_leaving(skb, config, &device);
	if (outcome == RW_EXIT_ASKED) {
		count(outcome, bytes, 0);
		return bpf_redirect(config->ask_ifindex, 0);
	}
	if (outcome == RW_EXIT_ASK_FAILED && skb->len != bytes) {
		/* Half made, the header stands in front of the frame: not even in audit. */
		count(outcome, bytes, 0);
		return TC_ACT_SHOT;
	}
	return conclude(config, outcome, bytes);
}

/* ------------------------------------------------------------------ the ask pair */

static __always_inline __u32 take_answer(struct __sk_buff *skb, const struct rw_node_config *config, __u32 *out_ifindex)
{
	const struct rw_node_device *device;
	struct rw_answer answer;

	if (bpf_skb_load_bytes(skb, ETH_BYTES, &answer, sizeof(answer)))
		return RW_BACK_MALFORMED;
	if (answer.nonce[0] != config->nonce[0] || answer.nonce[1] != config->nonce[1])
		return RW_BACK_FORGED;
	device = bpf_map_lookup_elem(&node_devices, &answer.out_ifindex);
	if (!device || device->kind == RW_DEVICE_ASK)
		return RW_BACK_UNKNOWN_DEVICE;
	/* A device without link header loses the Ethernet header as it is redirected there. */
	if (bpf_skb_adjust_room(skb, -(__s32)sizeof(answer), BPF_ADJ_ROOM_MAC, 0))
		return RW_BACK_MALFORMED;
	if (answer.flags & RW_ANSWER_TO_POD) {
		if (device->kind != RW_DEVICE_POD)
			return RW_BACK_UNKNOWN_DEVICE;
		if (bpf_skb_store_bytes(skb, 0, device->mac, sizeof(device->mac), 0))
			return RW_BACK_MALFORMED;
	}
	*out_ifindex = answer.out_ifindex;
	return RW_BACK_RETURNED;
}

SEC("tc")
int node_back(struct __sk_buff *skb)
{
	struct rw_node_config *config = get_config();
	__u32 out_ifindex = 0;
	__u32 outcome;

	if (!config)
		return TC_ACT_SHOT;
	outcome = take_answer(skb, config, &out_ifindex);
	count(outcome, skb->len, 0);
	return outcome == RW_BACK_RETURNED ? bpf_redirect(out_ifindex, 0) : TC_ACT_SHOT;
}

SEC("xdp")
int node_judge(struct xdp_md *ctx)
{
	struct rw_node_config *config = get_config();
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u64 bytes = ctx->data_end - ctx->data;
	struct rw_ask *ask = data;

	if (!config)
		return XDP_DROP;
	if (data + sizeof(*ask) + ETH_BYTES > end || ask->nonce[0] != config->nonce[0] || ask->nonce[1] != config->nonce[1] ||
	    ask->version != RW_ASK_VERSION) {
		count(RW_JUDGE_FORGED, bytes, 0);
		return XDP_DROP;
	}
	if (bpf_redirect_map(&ask_sockets, ctx->rx_queue_index, XDP_DROP) != XDP_REDIRECT) {
		count(RW_JUDGE_NO_SOCKET, bytes, 0);
		return XDP_DROP;
	}
	count(RW_JUDGE_ASKED, bytes, 0);
	return XDP_REDIRECT;
}
