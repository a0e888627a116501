// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
// Load for benchmarks: a generator that is run by BPF_PROG_TEST_RUN with live frames, and a sink that counts.
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Bytes of a packet that the generator writes: Ethernet, IPv4 or IPv6, and the layer 4 header.
#define TEMPLATE 80
#define MAX_FLOWS 65536

struct template {
	__u8 bytes[TEMPLATE];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_FLOWS);
	__type(key, __u32);
	__type(value, struct template);
} templates SEC(".maps");

struct position {
	__u32 flow;
	__u32 round;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct position);
} next_flow SEC(".maps");

struct tally {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} received SEC(".maps");

// How many of the templates are in use.
volatile const __u32 flow_count = 1;
// Whether source ports go on by one with every round.
volatile const __u32 vary = 0;

// Offsets of the source port and of the checksum in TCP over IPv4 without options.
#define SOURCE_PORT 34
#define TCP_CHECKSUM 50

// RFC 1624.
static __always_inline void vary_port(__u8 *frame, __u32 round)
{
	__u16 *port = (__u16 *)(frame + SOURCE_PORT);
	__u16 *checksum = (__u16 *)(frame + TCP_CHECKSUM);
	__u16 before = *port;
	__u16 after = bpf_htons((__u16)(bpf_ntohs(before) + round));
	__u32 sum = (__u16)~*checksum + (__u16)~before + after;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	*checksum = (__u16)~sum;
	*port = after;
}

// Writes the next flow's headers into the frame, which the kernel reuses, and sends it out of the interface that the
// run names as its ingress.
SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 zero = 0;
	struct position *next = bpf_map_lookup_elem(&next_flow, &zero);

	if (!next || data + TEMPLATE > end)
		return XDP_ABORTED;
	__u32 flow = next->flow;
	__u32 round = next->round;

	if (flow + 1 >= flow_count) {
		next->flow = 0;
		next->round = round + 1;
	} else {
		next->flow = flow + 1;
	}
	struct template *template = bpf_map_lookup_elem(&templates, &flow);

	if (!template)
		return XDP_ABORTED;
	__builtin_memcpy(data, template->bytes, TEMPLATE);
	if (vary)
		vary_port(data, round);
	return XDP_TX;
}

// Counts what arrives and ends it.
SEC("xdp")
int sink(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct tally *tally = bpf_map_lookup_elem(&received, &zero);

	if (tally) {
		tally->packets++;
		tally->bytes += ctx->data_end - ctx->data;
	}
	return XDP_DROP;
}

// For devices whose peer only needs an XDP program so that redirected frames are taken.
SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
