// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
// A packet generator that is run by BPF_PROG_TEST_RUN with live frames, and sinks that count by flow, keep a histogram
// of latencies, and answer TCP.
//
// Frame number n of a run is a function of n alone: its flow, its length and its place in a script. So user space knows
// what should have arrived, and nothing is looked up but a template, whatever the number of flows.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Bytes of a template: Ethernet, IPv6 and TCP, rounded up.
#define TEMPLATE 80
#define MAX_KINDS 16
#define MAX_SLOTS 64
#define NANOSECONDS 1000000000ULL
// How long a turn waits for its frame to be due; after that the kernel gets its turn.
#define LONGEST_WAIT 50000
// A frame that is later than this moves all that follow: what was missed is not made up for by a burst.
#define SLACK 20000
// First bytes of what is carried: of what is only counted, and of what the sink sends back as well.
#define MAGIC 0x5257
#define MAGIC_ANSWERED 0x5258

// What the generator carries behind the headers, in its CPU's byte order.
struct stamp {
	__u16 magic;
	__u32 flow;
	__u32 sequence;
	__u64 sent; // nanoseconds of the monotonic clock
} __attribute__((packed));

// Headers of one kind of frame, right for the first flow but for the stamp, which is zero.
struct template {
	__u8 bytes[TEMPLATE];
	__u16 length;   // of the frame
	__u16 stamped;  // whether it carries a stamp
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_KINDS);
	__type(key, __u32);
	__type(value, struct template);
} templates SEC(".maps");

// Where the parts of the frames are; the same for every frame of a load.
struct layout {
	__u32 v6;
	__u32 tcp;
};

volatile const struct layout layout = {};
// Flows at a time.
volatile const __u32 flows = 1;
// In order, or the number of bits of the permutation that shuffles them, and its key.
volatile const __u32 shuffle_bits = 0;
volatile const __u32 shuffle_key = 0;
// Every how many frames a flow ends and a new one begins; 0 for never.
volatile const __u64 new_flow_every = 0;
// Addresses (the lower 32 bits count on) and ports that flows have, each from the template's on.
volatile const __u32 from_count = 1;
volatile const __u32 to_count = 1;
volatile const __u32 from_ports = 1;
volatile const __u32 to_ports = 1;
// Kinds that a datagram's slot or a script's step has.
volatile const __u32 slots = 1;
volatile const __u8 kind_of_slot[MAX_SLOTS] = {};
// Longest frame.
volatile const __u32 longest = 0;

// Of one run; set by user space before it.
struct order {
	__u64 first; // number of the first frame
	__u64 count; // frames
	__u64 rate;  // frames per second; 0 for as fast as possible
	__u64 answered; // whether the sink sends datagrams back
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct order);
} orders SEC(".maps");

// Of one run; zero before it.
struct progress {
	__u64 sent;
	__u64 begin;  // when the first frame was sent, nanoseconds of the monotonic clock
	__u64 end;    // when the last one was
	__u64 behind; // how far the schedule was moved because frames were late, nanoseconds
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct progress);
} progresses SEC(".maps");

static __always_inline __u32 shuffled(__u32 index)
{
	__u32 bits = shuffle_bits, mask = (bits >= 32) ? 0xffffffff : (1U << bits) - 1, half = (bits + 1) / 2;

	// A permutation of all numbers of so many bits, walked until it is back among the flows: a permutation of those.
	// Fewer than half of the numbers are beyond, so 64 steps fail once in 2^64.
	for (int step = 0; step < 64; step++) {
		index ^= shuffle_key & mask;
		index = (index * 0x9e3779b1U) & mask;
		index ^= index >> (half & 31);
		index = (index * 0x85ebca6bU) & mask;
		index ^= index >> (half & 31);
		if (index < flows)
			return index;
	}
	return 0;
}

static __always_inline __u32 flow_of(__u64 n, __u32 steps)
{
	__u32 place = n % flows;

	if (shuffle_bits)
		place = shuffled(place);
	if (new_flow_every) {
		__u64 ended = n / new_flow_every;

		// The newest begins with the frame that ends the oldest.
		if (n % new_flow_every == 0 && n)
			return (__u32)(flows - 1 + ended);
		return (__u32)(ended + place);
	}
	if (layout.tcp)
		return (__u32)(n / ((__u64)flows * steps) * flows + place);
	return place;
}

static __always_inline __u32 slot_of(__u64 n, __u32 steps)
{
	__u64 round = n / flows;

	// A script goes on by one step with every round of the flows. Lengths go on with every frame, and by one more with
	// every round, so that a flow meets all of them.
	return layout.tcp ? round % steps : (n + round) % steps;
}

// A one's complement sum in the making (RFC 1071, RFC 1624); 32 bits at a time.
static __always_inline __u16 folded(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)sum;
}

// Adds to a big-endian field, and what that changes to a sum.
static __always_inline void add32(void *field, __u32 more, __u64 *sum)
{
	__u32 before = *(__u32 *)field;
	__u32 after = bpf_htonl(bpf_ntohl(before) + more);

	*sum += (__u64)(__u32)~before + after;
	*(__u32 *)field = after;
}

static __always_inline void add16(void *field, __u16 more, __u64 *sum)
{
	__u16 before = *(__u16 *)field;
	__u16 after = bpf_htons((__u16)(bpf_ntohs(before) + more));

	*sum += (__u64)(__u16)~before + after;
	*(__u16 *)field = after;
}

// Waits until the time has come, or for LONGEST_WAIT; the time now.
struct wait {
	__u64 until;
	__u64 now;
};

static long wait_a_bit(__u32 index, void *context)
{
	struct wait *wait = context;

	wait->now = bpf_ktime_get_ns();
	return wait->now >= wait->until;
}

static __always_inline __u64 wait_until(__u64 due)
{
	struct wait wait = { .now = bpf_ktime_get_ns() };

	if (wait.now >= due)
		return wait.now;
	wait.until = due < wait.now + LONGEST_WAIT ? due : wait.now + LONGEST_WAIT;
	bpf_loop(1 << 16, wait_a_bit, &wait, 0);
	return wait.now;
}

// Headers of a layout, a constant number of bytes each.
#define WRITE_HEADERS(ip, l4)                                                                                          \
	do {                                                                                                           \
		if (data + 14 + (ip) + (l4) > end)                                                                     \
			return XDP_ABORTED;                                                                            \
		__builtin_memcpy(data, template->bytes, 14 + (ip) + (l4));                                             \
		add32(data + 14 + ((ip) == 20 ? 12 : 20), from, &addresses);                                           \
		add32(data + 14 + ((ip) == 20 ? 16 : 36), to, &addresses);                                             \
		l4_header = data + 14 + (ip);                                                                          \
		if ((ip) == 20) {                                                                                      \
			__u16 *checksum = data + 14 + 10;                                                              \
			*checksum = ~folded((__u16)~*checksum + addresses);                                            \
		}                                                                                                      \
		checksum = l4_header + ((l4) == 20 ? 16 : 6);                                                          \
		payload = l4_header + (l4);                                                                            \
	} while (0)

// Writes the next frame over the one that the kernel reuses, and sends it out of the interface that the run names as its
// ingress. Sends nothing where no frame is due yet, or all were sent.
SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	void *l4_header, *payload;
	__u16 *checksum;
	__u32 zero = 0;
	struct order *order = bpf_map_lookup_elem(&orders, &zero);
	struct progress *progress = bpf_map_lookup_elem(&progresses, &zero);

	if (!order || !progress)
		return XDP_ABORTED;
	__u64 sent = progress->sent, now;

	if (sent >= order->count)
		return XDP_DROP;
	if (order->rate) {
		__u64 due = progress->begin + sent * NANOSECONDS / order->rate + progress->behind;

		now = wait_until(sent ? due : 0);
		if (sent && now < due)
			return XDP_DROP;
		if (sent && now > due + SLACK)
			progress->behind += now - due - SLACK;
	} else {
		now = bpf_ktime_get_ns();
	}
	__u64 n = order->first + sent;
	__u32 steps = slots ? slots : 1;
	__u32 flow = flow_of(n, steps), rest = flow;
	__u32 slot = slot_of(n, steps) & (MAX_SLOTS - 1);
	__u32 kind = kind_of_slot[slot];
	struct template *template = bpf_map_lookup_elem(&templates, &kind);

	if (!template)
		return XDP_ABORTED;
	__u32 from = rest % from_count;

	rest /= from_count;
	__u32 to = rest % to_count;

	rest /= to_count;
	__u16 from_port = rest % from_ports;

	rest /= from_ports;
	__u16 to_port = rest % to_ports;
	__u64 addresses = 0;

	if (layout.v6) {
		if (layout.tcp)
			WRITE_HEADERS(40, 20);
		else
			WRITE_HEADERS(40, 8);
	} else {
		if (layout.tcp)
			WRITE_HEADERS(20, 20);
		else
			WRITE_HEADERS(20, 8);
	}
	__u64 sum = (__u16)~*checksum + addresses;

	add16(l4_header, from_port, &sum);
	add16(l4_header + 2, to_port, &sum);
	if (layout.tcp) {
		__u32 begin = flow * 0x9e3779b1U;

		add32(l4_header + 4, begin, &sum);
		// Acknowledges what `answer` sends.
		if (((__u8 *)l4_header)[13] & 0x10)
			add32(l4_header + 8, begin + 0x01000000, &sum);
	}
	if (template->stamped) {
		struct stamp *stamp = payload;

		if (payload + sizeof(*stamp) > end)
			return XDP_ABORTED;
		__u16 magic = order->answered ? MAGIC_ANSWERED : MAGIC;

		stamp->magic = magic;
		stamp->flow = flow;
		stamp->sequence = (__u32)n;
		stamp->sent = now;
		sum += (__u64)magic + flow + (__u32)n + (now & 0xffffffff) + (now >> 32);
	}
	__u16 folded_sum = ~folded(sum);

	// Zero says that there is none (RFC 768).
	*checksum = !layout.tcp && !folded_sum ? 0xffff : folded_sum;
	__u32 length = template->length;

	if (length < longest && bpf_xdp_adjust_tail(ctx, (int)length - (int)longest))
		return XDP_ABORTED;
	if (!sent)
		progress->begin = now;
	progress->end = now;
	progress->sent = sent + 1;
	return XDP_TX;
}

struct tally {
	__u64 packets; // with a stamp
	__u64 bytes;   // of those
	__u64 others;  // packets without a stamp, those of TCP that open and close included
	__u64 reordered; // packets whose sequence number is below their flow's highest
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} tallies SEC(".maps");

struct flow_count {
	__u32 packets;
	__u32 highest; // sequence number
};

// By number of flow, modulo the number of entries, which user space sets.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_count);
} flow_counts SEC(".maps");

volatile const __u32 counted_flows = 1;

// Latencies in nanoseconds: 128 buckets for each power of two from 2^7 on, so that a bucket's width is below 0.8 % of
// its values; below, a bucket for each nanosecond. Up to 2^40.
#define BUCKETS 4480

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BUCKETS);
	__type(key, __u32);
	__type(value, __u64);
} latencies SEC(".maps");

static __always_inline __u32 bucket_of(__u64 value)
{
	__u32 power = 0;
	__u64 rest = value;

	if (value < 128)
		return value;
	if (rest >> 32)
		rest >>= 32, power += 32;
	if (rest >> 16)
		rest >>= 16, power += 16;
	if (rest >> 8)
		rest >>= 8, power += 8;
	if (rest >> 4)
		rest >>= 4, power += 4;
	if (rest >> 2)
		rest >>= 2, power += 2;
	if (rest >> 1)
		power += 1;
	if (power >= 40)
		return BUCKETS - 1;
	return (power - 6) * 128 + ((value >> (power - 7)) & 127);
}

// The stamp of a frame; none where it carries none.
static __always_inline struct stamp *stamp_of(void *data, void *end)
{
	struct ethhdr *ethernet = data;
	__u32 offset = 14;
	__u8 protocol;

	if (data + 14 + 40 > end)
		return 0;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		protocol = *(__u8 *)(data + 14 + 9);
		offset += 20;
	} else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6)) {
		protocol = *(__u8 *)(data + 14 + 6);
		offset += 40;
	} else {
		return 0;
	}
	if (protocol == 6)
		offset += 20;
	else if (protocol == 17)
		offset += 8;
	else
		return 0;
	struct stamp *stamp = data + offset;

	if ((void *)(stamp + 1) > end || (stamp->magic != MAGIC && stamp->magic != MAGIC_ANSWERED))
		return 0;
	return stamp;
}

static __always_inline void count(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 zero = 0;
	struct tally *tally = bpf_map_lookup_elem(&tallies, &zero);

	if (!tally)
		return;
	struct stamp *stamp = stamp_of(data, end);

	if (!stamp) {
		tally->others++;
		return;
	}
	__u64 latency = bpf_ktime_get_ns() - stamp->sent;
	__u32 bucket = bucket_of((__s64)latency < 0 ? 0 : latency);
	__u64 *packets = bpf_map_lookup_elem(&latencies, &bucket);

	if (packets)
		(*packets)++;
	tally->packets++;
	tally->bytes += end - data;
	__u32 flow = stamp->flow % counted_flows;
	struct flow_count *counted = bpf_map_lookup_elem(&flow_counts, &flow);

	if (counted) {
		// A flow's packets can come on several CPUs.
		__u32 before = __sync_fetch_and_add(&counted->packets, 1);

		if (before && (__s32)(stamp->sequence - counted->highest) < 0)
			tally->reordered++;
		else
			counted->highest = stamp->sequence;
	}
}

// Swaps as many bytes as both have.
static __always_inline void swap_bytes(__u8 *one, __u8 *other, int bytes)
{
	for (int at = 0; at < bytes; at++) {
		__u8 byte = one[at];

		one[at] = other[at];
		other[at] = byte;
	}
}

// Counts what arrives and ends it. Datagrams that ask for it go back to where they came from as they are: that changes no
// checksum.
SEC("xdp")
int count_and_drop(struct xdp_md *ctx)
{
	count(ctx);
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct stamp *stamp = stamp_of(data, end);

	if (!stamp || stamp->magic != MAGIC_ANSWERED || data + 14 + 20 + 8 > end)
		return XDP_DROP;
	__u8 *frame = data;

	if (((struct ethhdr *)data)->h_proto == bpf_htons(ETH_P_IP)) {
		if (frame[14 + 9] != 17)
			return XDP_DROP;
		swap_bytes(frame + 14 + 12, frame + 14 + 16, 4);
		swap_bytes(frame + 14 + 20, frame + 14 + 20 + 2, 2);
	} else {
		if (data + 14 + 40 + 8 > end || frame[14 + 6] != 17)
			return XDP_DROP;
		swap_bytes(frame + 14 + 8, frame + 14 + 24, 16);
		swap_bytes(frame + 14 + 40, frame + 14 + 40 + 2, 2);
	}
	swap_bytes(frame, frame + 6, 6);
	return XDP_TX;
}

// Ends what arrives, uncounted.
SEC("xdp")
int drop_all(struct xdp_md *ctx)
{
	return XDP_DROP;
}

// Counts what arrives, and answers TCP like a server that accepts everything, without state: SYN by SYN and ACK, data by
// ACK, FIN by FIN and ACK. Everything else ends here.
SEC("xdp")
int count_and_answer(struct xdp_md *ctx)
{
	count(ctx);
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	__u32 ip, total;
	__u8 address[16];
	__u64 sum = 0;

	if (data + 14 + 40 > end)
		return XDP_DROP;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		if (*(__u8 *)(data + 14) != 0x45 || *(__u8 *)(data + 14 + 9) != 6)
			return XDP_DROP;
		ip = 20;
		total = bpf_ntohs(*(__u16 *)(data + 16)) - 20;
	} else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6)) {
		if (*(__u8 *)(data + 14 + 6) != 6)
			return XDP_DROP;
		ip = 40;
		total = bpf_ntohs(*(__u16 *)(data + 18));
	} else {
		return XDP_DROP;
	}
	__u8 *tcp = data + 14 + (ip == 20 ? 20 : 40);

	if ((void *)(tcp + 20) > end)
		return XDP_DROP;
	__u32 header = (tcp[12] >> 4) * 4, flags = tcp[13];
	__u32 length = total > header ? total - header : 0;
	__u32 sequence = bpf_ntohl(*(__u32 *)(tcp + 4)), acknowledged = bpf_ntohl(*(__u32 *)(tcp + 8));
	__u8 answer;

	if (flags & 0x04)
		return XDP_DROP;
	if ((flags & 0x12) == 0x02) {
		answer = 0x12;
		acknowledged = sequence + 0x01000000;
		sequence += 1;
	} else if (flags & 0x01) {
		answer = 0x11;
		sequence += length + 1;
	} else if (length) {
		answer = 0x10;
		sequence += length;
	} else {
		return XDP_DROP;
	}
	__builtin_memcpy(address, ethernet->h_dest, 6);
	__builtin_memcpy(ethernet->h_dest, ethernet->h_source, 6);
	__builtin_memcpy(ethernet->h_source, address, 6);
	__u16 port = *(__u16 *)tcp;

	*(__u16 *)tcp = *(__u16 *)(tcp + 2);
	*(__u16 *)(tcp + 2) = port;
	*(__u32 *)(tcp + 4) = bpf_htonl(acknowledged);
	*(__u32 *)(tcp + 8) = bpf_htonl(sequence);
	tcp[12] = 5 << 4;
	tcp[13] = answer;
	*(__u16 *)(tcp + 16) = 0;
	*(__u16 *)(tcp + 18) = 0;
	if (ip == 20) {
		__builtin_memcpy(address, data + 14 + 12, 4);
		__builtin_memcpy(data + 14 + 12, data + 14 + 16, 4);
		__builtin_memcpy(data + 14 + 16, address, 4);
		*(__u16 *)(data + 16) = bpf_htons(40);
		*(__u8 *)(data + 14 + 8) = 64;
		*(__u16 *)(data + 14 + 10) = 0;
		for (int word = 0; word < 5; word++)
			sum += *(__u32 *)(data + 14 + 4 * word);
		*(__u16 *)(data + 14 + 10) = ~folded(sum);
		sum = 0;
		for (int word = 3; word < 5; word++)
			sum += *(__u32 *)(data + 14 + 4 * word);
	} else {
		if (data + 14 + 40 + 20 > end)
			return XDP_DROP;
		__builtin_memcpy(address, data + 14 + 8, 16);
		__builtin_memcpy(data + 14 + 8, data + 14 + 24, 16);
		__builtin_memcpy(data + 14 + 24, address, 16);
		*(__u16 *)(data + 18) = bpf_htons(20);
		*(__u8 *)(data + 14 + 7) = 64;
		for (int word = 2; word < 10; word++)
			sum += *(__u32 *)(data + 14 + 4 * word);
	}
	sum += bpf_htons(6) + bpf_htons(20);
	for (int word = 0; word < 5; word++)
		sum += *(__u32 *)(tcp + 4 * word);
	*(__u16 *)(tcp + 16) = ~folded(sum);
	int spare = (end - data) - (ip == 20 ? 60 : 74);

	if (spare > 0)
		bpf_xdp_adjust_tail(ctx, -spare);
	return XDP_TX;
}

// For devices whose peer only needs an XDP program so that redirected frames are taken.
SEC("xdp")
int pass_on(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
