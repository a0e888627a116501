/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the programs and the loader (bpf/src/maps.rs) agree on. A test compares the two. */
#ifndef RINGWALL_H
#define RINGWALL_H

/* Index into `counters`; bpf/src/counters.rs has the meanings. Never renumber. */
enum rw_counter {
	RW_XSK = 0,
	RW_KERNEL_NEIGHBOUR = 1,
	RW_KERNEL_MULTICAST = 2,
	RW_KERNEL_LINK_LOCAL = 3,
	RW_KERNEL_LOCAL = 4,
	RW_KERNEL_OTHER = 5,
	RW_FAIL_DROPPED = 6,
	RW_FAIL_MALFORMED = 7,
	RW_FAIL_REDIRECTED = 8,
	RW_FAIL_PASSED = 9,
	RW_FAIL_SAFE = 10,
	RW_WIRE_BYPASS = 11,
	RW_GUARD_REDIRECTED = 12,
	RW_GUARD_DROPPED = 13,
	RW_GUARD_FAIL_OPEN = 14,
	RW_REDIRECT_FAILED = 15,
	RW_KERNEL_REFUSED = 16,
	RW_COUNTERS = 17,
};

enum rw_role {
	RW_WIRE = 0,
	RW_POD = 1,
	RW_UPLINK = 2,
	RW_HOST = 3,
};

/* rw_config.flags */
#define RW_FAIL_OPEN 1u		/* without a socket everything passes */
#define RW_JUDGE_ALL 2u		/* wire: also frames without a pod address go to the socket */
#define RW_PEER_BY_SKB 4u	/* wire: the peer is reached by the tc ingress program, not by the devmap */
#define RW_GUARD_REDIRECT 8u	/* guard: hand to guard_ifindex; else drop */

#define RW_MAX_PORTS 8192
#define RW_MAX_WIRE_ENDS 1024
#define RW_MAX_QUEUES 256
#define RW_MAX_LOCAL 4096
#define RW_MAX_PREFIXES 131072
#define RW_MAX_FAILSAFE 32
#define RW_MAX_TUNNEL_PORTS 16

/* An element of `counters`. */
struct rw_counts {
	__u64 values[RW_COUNTERS];
};

/* An element of `port_config`. Host byte order. */
struct rw_config {
	__u64 build_id;		/* of the programs that wrote the maps */
	__u32 role;		/* enum rw_role */
	__u32 flags;
	__u32 ifindex;		/* of the port */
	__u32 peer_ifindex;	/* wire: the other end */
	__u32 guard_ifindex;	/* guard: the kernel's end of the host port */
	__u8 guard_mac[6];	/* guard: Ethernet address of its judged end */
	__u16 failsafe_count;
	char name[16];		/* of the interface */
	__u32 discovery_until;	/* written by the programs: see `within_discovery_limit` */
	__u16 tunnel_ports[RW_MAX_TUNNEL_PORTS];	/* UDP ports of tunnels, besides those that are known; 0: none */
#ifdef RW_NEIGHBOUR
	__u64 of_another_version; /* for tests of upgrades */
#endif
};

/* Key of `local6`, network byte order. */
struct rw_address6 {
	__u8 address[16];
};

/* Key of `pods4` and `pods6`: prefix length in bits, address in network byte order. */
struct rw_prefix4 {
	__u32 bits;
	__u8 address[4];
};

struct rw_prefix6 {
	__u32 bits;
	__u8 address[16];
};

/* An element of `failsafe`. Addresses and masks in network byte order, as four words; IPv4 uses the first. */
struct rw_failsafe {
	__u32 from[4];
	__u32 from_mask[4];
	__u32 to[4];
	__u32 to_mask[4];
	__u16 family;		/* 4 or 6 */
	__u16 protocol;		/* 0xffff: any */
	__u16 port_low;		/* host byte order, at the `to` end */
	__u16 port_high;	/* port_low > port_high: any */
};

#endif
