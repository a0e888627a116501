// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
// Load for benchmarks: a generator that is run by BPF_PROG_TEST_RUN with live frames, and a sink that counts.
#include <linux/bpf.h>
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

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
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

// Writes the next flow's headers into the frame, which the kernel reuses, and sends it out of the interface that the
// run names as its ingress.
SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 zero = 0;
	__u32 *next = bpf_map_lookup_elem(&next_flow, &zero);

	if (!next || data + TEMPLATE > end)
		return XDP_ABORTED;
	__u32 flow = *next;
	*next = flow + 1 >= flow_count ? 0 : flow + 1;
	struct template *template = bpf_map_lookup_elem(&templates, &flow);

	if (!template)
		return XDP_ABORTED;
	__builtin_memcpy(data, template->bytes, TEMPLATE);
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
