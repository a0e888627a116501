// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
// What ringwall is compared with: forwarding inside of XDP, and steering to raw AF_XDP sockets.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_QUEUES 64

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

// Addresses and ports in network byte order.
struct flow {
	__u32 src;
	__u32 dst;
	__u16 src_port;
	__u16 dst_port;
	__u32 protocol;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow);
	__type(value, __u64);
} flows SEC(".maps");

// Whatever arrives goes to the socket of its queue.
SEC("xdp")
int steer(struct xdp_md *ctx)
{
	return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_DROP);
}

// Whatever arrives leaves by the port: no packet is looked at.
SEC("xdp")
int forward(struct xdp_md *ctx)
{
	return bpf_redirect_map(&ports, 0, XDP_DROP);
}

// UDP over IPv4 leaves by the port if its flow is known, which counts it; a flow that is not becomes known. No policy.
SEC("xdp")
int forward_flows(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct udphdr *udp = (void *)(ip + 1);

	if ((void *)(udp + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 || ip->protocol != 17)
		return XDP_DROP;
	struct flow flow = {
		.src = ip->saddr,
		.dst = ip->daddr,
		.src_port = udp->source,
		.dst_port = udp->dest,
		.protocol = ip->protocol,
	};
	__u64 *packets = bpf_map_lookup_elem(&flows, &flow);

	if (packets) {
		*packets += 1;
	} else {
		__u64 one = 1;

		if (bpf_map_update_elem(&flows, &flow, &one, BPF_ANY))
			return XDP_DROP;
	}
	return bpf_redirect_map(&ports, 0, XDP_DROP);
}

char LICENSE[] SEC("license") = "GPL";
