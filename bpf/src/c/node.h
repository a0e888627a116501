/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the programs of a node, their loader (bpf/src/node/) and the workers agree on. Integers in host byte order, unless
 * they say `be`. Addresses in network byte order, IPv4 as ::ffff:a.b.c.d. */
#ifndef RINGWALL_NODE_H
#define RINGWALL_NODE_H

/* What became of a packet in one of the programs: index into `node_counters`. Each packet that a program sees moves exactly one
 * of its own. bpf/src/node/counters.rs has the meanings. Never renumber. */
enum rw_node_outcome {
	/* from_pod: what a pod sends */
	RW_POD_PASSED = 0,
	RW_POD_LINK = 1,		/* ARP, discovery, DHCP, MLD */
	RW_POD_MALFORMED = 2,
	RW_POD_UNKNOWN_DEVICE = 3,
	RW_POD_SPOOFED_MAC = 4,
	RW_POD_SPOOFED_SOURCE = 5,
	RW_POD_SPOOFED_ARP = 6,
	RW_POD_SPOOFED_NEIGHBOUR = 7,
	RW_POD_ROUTER = 8,
	RW_POD_TAGGED = 9,
	RW_POD_ETHERTYPE = 10,
	RW_POD_ENCAPSULATED = 11,
	RW_POD_SOURCE_ROUTE = 12,
	RW_POD_GROUP = 13,
	RW_POD_DENIED = 14,
	RW_POD_ASK_LIMIT = 15,
	RW_POD_LINK_LIMIT = 39,
	RW_POD_ASK_QUEUE = 49,
	/* exit: what leaves by a device */
	RW_EXIT_HIT = 16,
	RW_EXIT_RETURNED = 17,
	RW_EXIT_NO_POD = 18,
	RW_EXIT_OWN_STACK = 19,
	RW_EXIT_LINK = 20,
	RW_EXIT_NOT_IP = 21,
	RW_EXIT_RELATED = 22,
	RW_EXIT_ASKED = 23,
	RW_EXIT_FAIL_OPEN = 24,
	RW_EXIT_FAIL_CLOSED = 25,
	RW_EXIT_MALFORMED = 26,
	RW_EXIT_UNKNOWN_DEVICE = 27,
	RW_EXIT_NOT_ITS_ADDRESS = 28,
	RW_EXIT_GROUP = 29,
	RW_EXIT_ETHERTYPE = 30,
	RW_EXIT_TAGGED = 31,
	RW_EXIT_SPOOFED_SOURCE = 32,
	RW_EXIT_SERVICE_UNRESOLVED = 33,
	RW_EXIT_DENIED = 34,
	RW_EXIT_RELATED_FOREIGN = 35,
	RW_EXIT_RELATED_TOO_LONG = 36,
	RW_EXIT_ASK_LIMIT = 37,
	RW_EXIT_ASK_FAILED = 38,
	RW_EXIT_ASK_QUEUE = 48,
	/* from_net: what comes from elsewhere */
	RW_NET_PASSED = 40,
	RW_NET_SPOOFED_SOURCE = 41,
	RW_NET_UNKNOWN_DEVICE = 42,
	/* back: what workers return */
	RW_BACK_RETURNED = 44,
	RW_BACK_MALFORMED = 45,
	RW_BACK_FORGED = 46,
	RW_BACK_UNKNOWN_DEVICE = 47,
	/* judge: what goes to a worker */
	RW_JUDGE_ASKED = 50,
	RW_JUDGE_FORGED = 51,
	RW_JUDGE_NO_SOCKET = 52,
	RW_OUTCOMES = 56,
	/* Beside the outcome. */
	RW_NOTE_CT_MISMATCH = 56,	/* NAT that conntrack does not know: judged by the packet's own addresses */
	RW_NOTE_UNTRACKED = 57,		/* judged without conntrack */
	RW_NODE_COUNTERS = 60,
};

/* rw_node_config.flags */
#define RW_NODE_FAIL_OPEN 1u	/* without workers, what would be asked passes */
#define RW_NODE_AUDIT 2u	/* what would drop passes; it is counted under its reason */
#define RW_NODE_ENFORCING 4u	/* the workers judge; until then what would be asked follows the fail mode */

/* rw_node_device.kind */
enum rw_device_kind {
	RW_DEVICE_POD = 1,
	RW_DEVICE_BRIDGE = 2,
	RW_DEVICE_OTHER = 3,	/* an uplink, an overlay, any other guarded device */
	RW_DEVICE_ASK = 4,
};

/* rw_node_device.flags */
#define RW_DEVICE_NO_LINK 1u	/* its packets begin with the IP header */
#define RW_DEVICE_PODS_ALONE 2u	/* bridge: all its ports are pods' */

/* rw_node_address.kind */
enum rw_address_kind {
	RW_ADDRESS_POD = 1,	/* of a pod of this node */
	RW_ADDRESS_HOST = 2,	/* of this host */
};

/* rw_ask.conntrack */
enum rw_conntrack {
	RW_UNTRACKED = 0,
	RW_ORIGINAL = 1,
	RW_REPLY = 2,
	RW_RELATED_ORIGINAL = 3,	/* an ICMP error about the flow, which goes in its original direction */
	RW_RELATED_REPLY = 4,
};

/* rw_ask.flags */
#define RW_ASK_SRC_LOCAL 1u
#define RW_ASK_DST_LOCAL 2u
#define RW_ASK_NO_LINK 4u
#define RW_ASK_CACHEABLE 8u
#define RW_ASK_MIDSTREAM 16u

/* rw_flow_entry.action */
#define RW_ACTION_NONE 0
#define RW_ACTION_ALLOW 1
#define RW_ACTION_DENY 2

/* rw_flow_entry.flags */
#define RW_FLOW_TRACKED 8u	/* conntrack has the flow */

/* rw_answer.flags, beside RW_ASK_NO_LINK */
#define RW_ANSWER_TO_POD 32u	/* for the pod behind the device, which has to be a pod's port: its Ethernet address is put in */

#define RW_ASK_VERSION 2
#define RW_WAYS 8
#define RW_MAX_BUCKETS 1048576		/* a power of two */
#define RW_EPOCHS 65536
#define RW_MAX_DEVICES 8192
#define RW_DEVICE_PLACES 16384		/* a power of two */
#define RW_MAX_ADDRESSES 65536
#define RW_MAX_SERVICE_PREFIXES 1024
#define RW_MAX_ASK_QUEUES 256
#define RW_MAX_ASK_SHARES 65536
#define RW_ASK_SHARE 8			/* a device may have one in so many of a queue's free places */
#define RW_MAX_OVERLAY_PORTS 16

struct rw_tuple {
	__u32 src[4];		/* be */
	__u32 dst[4];		/* be */
	__u16 src_port;		/* be; ICMP echo: its identifier */
	__u16 dst_port;		/* be; ICMP: type in the first byte, code in the second */
};

/* In front of the frame that goes to a worker. */
struct rw_ask {
	__u32 out_ifindex;
	__u32 nonce[2];
	__u16 ethertype;	/* be */
	__u8 conntrack;		/* enum rw_conntrack */
	__u8 flags;
	__u32 in_ifindex;	/* 0: this host's stack */
	__u32 signature;
	__u32 buckets[2];
	__u16 zone;
	__u8 protocol;
	__u8 version;
	struct rw_tuple original;
	struct rw_tuple reply;
	__u32 subject;		/* index of the device whose token was taken */
	__u32 queue;		/* of the ask pair */
	__u32 ticket;		/* number of this ask on that queue */
};

/* One queue of the ask pair. A queue keeps its order, so whoever knows the newest ticket that a worker has seen knows which asks wait. Tickets
 * wrap. The words lie on cache lines of their own. */
struct rw_ask_queue {
	__u32 issued;		/* newest ticket; the programs write it */
	__u32 unused[15];
	__u32 taken;		/* newest ticket that the worker has dealt with; the worker writes it */
	__u32 unused_too[15];
};

/* Between Ethernet and IP header of the frame that comes back. */
struct rw_answer {
	__u32 out_ifindex;
	__u32 nonce[2];
	__u32 flags;		/* RW_ASK_NO_LINK, RW_ANSWER_TO_POD */
};

struct rw_flow_bucket {
	__u32 signatures[RW_WAYS];	/* 0: empty */
};

struct rw_flow_entry {
	__u32 version;		/* odd: being written */
	__u8 action;
	__u8 reason;
	__u16 zone;
	__u8 protocol;
	__u8 flags;
	__u16 pad;
	struct rw_tuple original;
	struct rw_tuple reply;
	__u32 slots[3];
	__u32 epochs[3];
	__u32 provenance;	/* of a denial: the worker's. Of what is allowed: the device where the original direction came in when
				 * it was asked about, 0 where that is not known; packets that come by it need no look at whose
				 * their source is */
	__u64 expires;		/* CLOCK_MONOTONIC, ns; 0: never */
	__u64 flow;		/* the worker's */
};

/* By direction: original, reply. */
struct rw_flow_usage {
	__u64 packets[2];
	__u64 bytes[2];		/* from the IP header on */
	__u64 last_seen;	/* CLOCK_MONOTONIC, ns, coarse */
	__u8 tcp_flags[2];
	__u16 pad;
	__u32 tick;		/* the kernel's when `last_seen` was written; the programs' alone */
	__u8 unused[16];
};

/* The only element of `node_pulse`, which workers and publisher write. CLOCK_MONOTONIC, ns. */
struct rw_node_pulse {
	__u64 workers;		/* newest tick of the workers: older than `stale_ns`, the fail mode holds */
	__u64 lease;		/* after this no cached decision counts; 0: they count for ever */
};

/* The only element of `node_config`. */
struct rw_node_config {
	__u64 build_id;		/* of the programs that the maps are of */
	__u64 secret[2];	/* of the cache's hash */
	__u32 nonce[2];
	__u32 ask_ifindex;
	__u32 flags;
	__u64 stale_ns;
	__u32 ask_queues;
	__u32 ask_mtu;		/* 0: not known; longest frame behind the header that the ask pair takes */
	__u32 ask_interval_ns;	/* of one token; 0: no limit */
	__u32 ask_burst;	/* tokens */
	__u16 overlay_ports[RW_MAX_OVERLAY_PORTS]; /* be; 0 ends the list */
	__u32 ask_places;	/* frames that a queue of the ask pair holds; 0: it is not looked at how many wait */
	__u32 unused;
};

/* By index of the device. `device_places` has the same at the index modulo its size, written as entries of the flow cache are; the first
 * device of those with the same place has it. */
struct rw_node_device {
	__u16 kind;		/* in a place, 0: none */
	__u16 flags;
	__u32 version;		/* in a place; odd: being written */
	__u32 master;		/* index of its bridge; 0: none */
	__u32 ifindex;
	__u8 mac[6];		/* pod: of its own end */
	__u16 pad;
	/* Written by the programs, in the place if the device has it; ms. */
	__u32 refused_ms;	/* when a packet of this pod was last denied from the cache or refused a token; 0: never */
	__u32 discovery_until;	/* see `within_discovery_limit` */
	/* Pod: one of its addresses of each family, which `node_addresses` has, too; zeros for none. */
	__u32 address[2][4];	/* be */
} __attribute__((aligned(8)));

/* By address. */
struct rw_node_address {
	__u32 ifindex;		/* pod: of its port */
	__u32 kind;
};

struct rw_service_key {
	__u32 bits;		/* of the IPv6 form: 96 more for IPv4 */
	__u32 address[4];	/* be */
};

struct rw_node_count {
	__u64 packets;
	__u64 bytes;
	__u64 audited;		/* packets of `packets` that would have dropped and passed, in audit */
};

/* What others copy of these layouts. */
#define RW_AT(type, field, offset) _Static_assert(__builtin_offsetof(struct type, field) == (offset), #type "." #field)
_Static_assert(sizeof(struct rw_tuple) == 36, "rw_tuple");
_Static_assert(sizeof(struct rw_ask) == 120, "rw_ask");
_Static_assert(sizeof(struct rw_answer) == 16, "rw_answer");
_Static_assert(sizeof(struct rw_flow_bucket) == 32, "rw_flow_bucket");
_Static_assert(sizeof(struct rw_flow_entry) == 128, "rw_flow_entry");
_Static_assert(sizeof(struct rw_flow_usage) == 64, "rw_flow_usage");
_Static_assert(sizeof(struct rw_node_pulse) == 16, "rw_node_pulse");
_Static_assert(sizeof(struct rw_node_config) == 104, "rw_node_config");
_Static_assert(sizeof(struct rw_ask_queue) == 128, "rw_ask_queue");
_Static_assert(sizeof(struct rw_node_device) == 64, "rw_node_device");
_Static_assert(sizeof(struct rw_node_address) == 8, "rw_node_address");
_Static_assert(sizeof(struct rw_service_key) == 20, "rw_service_key");
_Static_assert(sizeof(struct rw_node_count) == 24, "rw_node_count");
RW_AT(rw_ask, nonce, 4);
RW_AT(rw_ask, ethertype, 12);
RW_AT(rw_ask, conntrack, 14);
RW_AT(rw_ask, flags, 15);
RW_AT(rw_ask, in_ifindex, 16);
RW_AT(rw_ask, signature, 20);
RW_AT(rw_ask, buckets, 24);
RW_AT(rw_ask, zone, 32);
RW_AT(rw_ask, protocol, 34);
RW_AT(rw_ask, version, 35);
RW_AT(rw_ask, original, 36);
RW_AT(rw_ask, reply, 72);
RW_AT(rw_ask, subject, 108);
RW_AT(rw_ask, queue, 112);
RW_AT(rw_ask, ticket, 116);
RW_AT(rw_ask_queue, taken, 64);
RW_AT(rw_flow_entry, action, 4);
RW_AT(rw_flow_entry, reason, 5);
RW_AT(rw_flow_entry, zone, 6);
RW_AT(rw_flow_entry, protocol, 8);
RW_AT(rw_flow_entry, original, 12);
RW_AT(rw_flow_entry, reply, 48);
RW_AT(rw_flow_entry, slots, 84);
RW_AT(rw_flow_entry, epochs, 96);
RW_AT(rw_flow_entry, provenance, 108);
RW_AT(rw_flow_entry, expires, 112);
RW_AT(rw_flow_usage, bytes, 16);
RW_AT(rw_flow_usage, last_seen, 32);
RW_AT(rw_flow_usage, tcp_flags, 40);
RW_AT(rw_node_device, ifindex, 12);
RW_AT(rw_node_device, mac, 16);
RW_AT(rw_node_device, version, 4);
RW_AT(rw_node_device, refused_ms, 24);
RW_AT(rw_node_device, address, 32);

#endif
