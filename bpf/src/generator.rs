//! Load for benchmarks: frames that the kernel makes and sends (live frames of BPF_PROG_TEST_RUN), and sinks that count
//! them by flow and keep a histogram of their latencies. `c/generator.bpf.c` says what a frame's number decides.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _},
    time::Duration,
};

pub use libbpf_rs::Link;
use libbpf_rs::{
    MapCore, MapFlags, OpenObject, libbpf_sys,
    skel::{OpenSkel, SkelBuilder},
};

use crate::{
    BpfError,
    error::wrap,
    kernel::interface_index,
    skeleton::generator::{GeneratorSkel, GeneratorSkelBuilder},
};

/// Bytes that a template has room for: Ethernet, IPv6 and TCP, rounded up.
pub const TEMPLATE: usize = 80;
/// Bytes of what a frame carries behind its headers: a mark, its flow, its number and when it was sent.
pub const STAMP: usize = 18;
/// Most kinds of frames of a load.
pub const MAX_KINDS: usize = 16;
/// Most places in the sequence of kinds.
pub const MAX_SLOTS: usize = 64;
/// Most flows that a sink counts one by one.
pub const MAX_COUNTED_FLOWS: u32 = 1 << 23;
/// Live frames (`linux/bpf.h`).
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
/// Buckets of the histogram, as in the program.
const BUCKETS: u32 = 4480;
/// How long the program waits within a turn; its `LONGEST_WAIT`.
const LONGEST_WAIT: Duration = Duration::from_micros(50);
/// Most turns of one call: a stopped generator still takes them, some 20 ns each.
const MOST_TURNS: u64 = 1 << 24;

/// A kind of frame.
#[derive(Clone, Debug)]
pub struct Template {
    /// Headers of the first flow, with a checksum that presumes a stamp of zeros
    pub headers: [u8; TEMPLATE],
    /// Length of the frame in bytes, without the frame check sequence
    pub length: u16,
    /// Whether it carries a stamp behind its headers
    pub stamped: bool,
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// The kinds of frames, at most [`MAX_KINDS`]
    pub templates: Vec<Template>,
    /// Indices of kinds, in the order in which they are sent, at most [`MAX_SLOTS`]: with TCP a script, of which each
    /// round of the flows is a step
    pub slots: Vec<u8>,
    /// Whether all are IPv6, else IPv4 without options
    pub v6: bool,
    /// Whether all are TCP without options, else UDP
    pub tcp: bool,
    /// Flows at a time
    pub flows: u32,
    /// Whether each round of the flows is in an order without a pattern
    pub shuffled: bool,
    /// After how many frames the oldest flow ends and a new one begins; 0 for never. Not with TCP
    pub new_flow_every: u64,
    /// How many addresses of sources there are from the template's on; sources change fastest
    pub from_count: u32,
    /// How many addresses of destinations
    pub to_count: u32,
    /// How many source ports
    pub from_ports: u32,
    /// How many destination ports
    pub to_ports: u32,
    /// How many flows the sink counts, from the first on; a flow beyond counts with one of those
    pub counted_flows: u32,
}

/// One call of the generator.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Number of the first frame; it decides the flow, the kind and the step that the run begins with
    pub first: u64,
    /// Frames
    pub count: u64,
    /// Frames per second; None for as fast as possible
    pub rate: Option<u64>,
    /// Whether a sink sends datagrams back to where they came from, besides counting them
    pub answered: bool,
}

/// What a call of the generator did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Frames
    pub frames: u64,
    /// From the first frame to the last
    pub took: Duration,
    /// By how much frames were late in sum, which is not made up for
    pub behind: Duration,
}

impl Sent {
    /// Frames per second.
    pub fn rate(&self) -> f64 {
        match self.frames {
            0 | 1 => 0.0,
            frames => (frames - 1) as f64 / self.took.as_secs_f64(),
        }
    }
}

/// What all sinks together have counted since they were loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Frames with a stamp
    pub packets: u64,
    /// Bytes of those
    pub bytes: u64,
    /// Frames without a stamp: the opening and the end of TCP connections, and what others send
    pub others: u64,
    /// Frames that came after one of the same flow that was sent later
    pub reordered: u64,
    /// Latencies: packets by bucket
    buckets: Vec<u64>,
}

impl Received {
    /// What came since an earlier look.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            bytes: self.bytes - before.bytes,
            others: self.others - before.others,
            reordered: self.reordered - before.reordered,
            buckets: self
                .buckets
                .iter()
                .zip(&before.buckets)
                .map(|(now, then)| now - then)
                .collect(),
        }
    }

    /// Latencies in nanoseconds, exact to 0.8 %, and how many packets had each; lowest first.
    pub fn latencies(&self) -> impl Iterator<Item = (u64, u64)> {
        (0_u64..)
            .zip(&self.buckets)
            .filter(|(_, packets)| **packets > 0)
            .map(|(bucket, packets)| (middle_of(bucket), *packets))
    }
}

/// The middle of a bucket, nanoseconds: the inverse of the program's `bucket_of`.
fn middle_of(bucket: u64) -> u64 {
    if bucket < 256 {
        return bucket; // a nanosecond each up to 128; up to 256 too, since the first power's width is one
    }
    let power = bucket / 128 + 6;
    let width = 1 << (power - 7);
    (128 + bucket % 128) * width + width / 2
}

/// Generator and sinks of one load, loaded.
pub struct Generator {
    skel: GeneratorSkel<'static>,
    longest: usize,
}

impl Generator {
    /// Loads the programs.
    ///
    /// # Errors
    /// The load does not fit the programs, a right is missing, or the kernel refuses.
    pub fn load(load: &Load) -> Result<Self, BpfError> {
        for (what, got, max) in [
            ("kinds of frames", load.templates.len(), MAX_KINDS),
            ("places in the sequence of frames", load.slots.len(), MAX_SLOTS),
            (
                "flows to count",
                load.counted_flows as usize,
                MAX_COUNTED_FLOWS as usize,
            ),
        ] {
            if got == 0 || got > max {
                return Err(BpfError::TooMany { what, got, max });
            }
        }
        let longest = load
            .templates
            .iter()
            .map(|template| template.length)
            .max()
            .unwrap_or_default();
        // The skeleton borrows its object; both live as long as the process, of which a benchmark needs few.
        let object: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = GeneratorSkelBuilder::default()
            .open(object)
            .map_err(|error| wrap("opening the generator's programs", error))?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.layout.v6 = u32::from(load.v6);
            constants.layout.tcp = u32::from(load.tcp);
            constants.flows = load.flows.max(1);
            if load.shuffled {
                constants.shuffle_bits = (u32::BITS - load.flows.saturating_sub(1).leading_zeros()).max(1);
                constants.shuffle_key = 0x5bd1_e995;
            }
            constants.new_flow_every = load.new_flow_every;
            constants.from_count = load.from_count.max(1);
            constants.to_count = load.to_count.max(1);
            constants.from_ports = load.from_ports.max(1);
            constants.to_ports = load.to_ports.max(1);
            constants.slots = load.slots.len() as u32;
            constants.kind_of_slot[..load.slots.len()].copy_from_slice(&load.slots);
            constants.longest = longest.into();
            constants.counted_flows = load.counted_flows;
        }
        open.maps
            .flow_counts
            .set_max_entries(load.counted_flows)
            .map_err(|error| wrap("sizing the table of flows", error))?;
        let skel = open
            .load()
            .map_err(|error| wrap("loading the generator's programs", error))?;
        for (kind, template) in (0_u32..).zip(&load.templates) {
            let mut value = template.headers.to_vec();
            value.extend(template.length.to_ne_bytes());
            value.extend(u16::from(template.stamped).to_ne_bytes());
            skel.maps
                .templates
                .update(&kind.to_ne_bytes(), &value, MapFlags::ANY)
                .map_err(|error| wrap("writing the generator's templates", error))?;
        }
        Ok(Self {
            skel,
            longest: longest.into(),
        })
    }

    /// Sends out of an interface (its own XDP program is not run), on this core, until all frames are sent. Each call costs
    /// about 20 ms beside.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses: before Linux 5.18 it has no live frames.
    pub fn send(&self, interface: &str, order: Order) -> Result<Sent, BpfError> {
        let index = interface_index(interface).ok_or_else(|| BpfError::NoInterface(interface.to_owned()))?;
        let rate = order.rate.unwrap_or(0);
        let words: Vec<u8> = [order.first, order.count, rate, u64::from(order.answered)]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let zero = 0_u32.to_ne_bytes();
        let write = |map: &dyn MapCore, value: &[u8]| {
            map.update(&zero, value, MapFlags::ANY)
                .map_err(|error| wrap("ordering frames", error))
        };
        write(&self.skel.maps.orders, &words)?;
        write(&self.skel.maps.progresses, &[0; 32])?;
        // Frames of a batch wait for each other; slow loads go one by one.
        let batch = match order.rate {
            Some(rate) => (rate / 250_000).clamp(1, 64) as u32,
            None => 64,
        };
        let turns = match order.rate {
            Some(rate) => (Duration::from_secs(1).as_nanos() as u64)
                .div_ceil(rate.max(1) * LONGEST_WAIT.as_nanos() as u64)
                .max(1),
            None => 1,
        };
        loop {
            let [sent, begin, end, behind] = self.progress()?;
            if sent >= order.count || self.is_stopped()? {
                return Ok(Sent {
                    frames: sent,
                    took: Duration::from_nanos(end - begin),
                    behind: Duration::from_nanos(behind),
                });
            }
            let repeat = (order.count - sent).saturating_mul(turns).min(MOST_TURNS);
            self.run(index, repeat as u32, batch)
                .map_err(|error| BpfError::system(format!("sending out of `{interface}`"), error))?;
            if self.progress()?[0] == sent && turns == 1 && !self.is_stopped()? {
                return Err(BpfError::system(
                    format!("sending out of `{interface}`: the generator sends nothing"),
                    io::ErrorKind::InvalidData.into(),
                ));
            }
        }
    }

    fn is_stopped(&self) -> Result<bool, BpfError> {
        let value = self
            .skel
            .maps
            .orders
            .lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| wrap("reading the generator's order", error))?
            .unwrap_or_default();
        Ok(word_at(&value, 1) == 0)
    }

    /// Frames sent; when the first and the last one; how late in sum. Nanoseconds.
    fn progress(&self) -> Result<[u64; 4], BpfError> {
        let value = self
            .skel
            .maps
            .progresses
            .lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| wrap("reading the generator's progress", error))?
            .unwrap_or_default();
        Ok(std::array::from_fn(|word| word_at(&value, word)))
    }

    #[allow(unsafe_code)] // libbpf-rs does not pass on the size of a batch
    fn run(&self, interface: u32, repeat: u32, batch: u32) -> io::Result<()> {
        let frame = vec![0_u8; self.longest];
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let mut context = [0_u8; 24];
        context[4..8].copy_from_slice(&(self.longest as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&interface.to_ne_bytes());
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
            ctx_in: context.as_ptr().cast(),
            ctx_size_in: context.len() as u32,
            data_in: frame.as_ptr().cast(),
            data_size_in: frame.len() as u32,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            repeat: repeat as i32,
            batch_size: batch,
            ..Default::default()
        };
        let program = self.skel.progs.generate.as_fd().as_raw_fd();
        // SAFETY: `options` and both buffers that it points to are locals that outlive the call; their lengths are theirs.
        let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program, &raw mut options) };
        match result {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// Makes an interface count and end what it receives, until the answer is dropped. Datagrams of orders that ask for it
    /// are sent back as well.
    ///
    /// # Errors
    /// There is no such interface, or it carries another program.
    pub fn sink(&self, interface: &str) -> Result<Link, BpfError> {
        attach(&self.skel.progs.count_and_drop, interface)
    }

    /// As [`Self::sink`], and answers TCP like a server that accepts everything.
    ///
    /// # Errors
    /// As [`Self::sink`].
    pub fn answer(&self, interface: &str) -> Result<Link, BpfError> {
        attach(&self.skel.progs.count_and_answer, interface)
    }

    /// Makes an interface end what it receives, uncounted.
    ///
    /// # Errors
    /// As [`Self::sink`].
    pub fn discard(&self, interface: &str) -> Result<Link, BpfError> {
        attach(&self.skel.progs.drop_all, interface)
    }

    /// Makes an interface's driver take redirected frames, without changing what is received.
    ///
    /// # Errors
    /// As [`Self::sink`].
    pub fn pass(&self, interface: &str) -> Result<Link, BpfError> {
        attach(&self.skel.progs.pass_on, interface)
    }

    /// Ends what another thread sends, within a call's time.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn stop(&self) -> Result<(), BpfError> {
        self.skel
            .maps
            .orders
            .update(&0_u32.to_ne_bytes(), &[0; 32], MapFlags::ANY)
            .map_err(|error| wrap("stopping the generator", error))
    }

    /// Frames with a stamp that all sinks together have counted; much quicker than [`Self::received`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn packets(&self) -> Result<u64, BpfError> {
        let tallies = per_cpu(&self.skel.maps.tallies, 0)?;
        Ok(tallies.iter().map(|tally| word_at(tally, 0)).sum())
    }

    /// What all sinks together have counted.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn received(&self) -> Result<Received, BpfError> {
        let maps = &self.skel.maps;
        let tallies = per_cpu(&maps.tallies, 0)?;
        let sum = |word: usize| tallies.iter().map(|tally| word_at(tally, word)).sum();
        let buckets = (0..BUCKETS)
            .map(|bucket| {
                Ok(per_cpu(&maps.latencies, bucket)?
                    .iter()
                    .map(|value| word_at(value, 0))
                    .sum())
            })
            .collect::<Result<_, BpfError>>()?;
        Ok(Received {
            packets: sum(0),
            bytes: sum(1),
            others: sum(2),
            reordered: sum(3),
            buckets,
        })
    }

    /// Packets of each flow that the sinks have counted, from the first flow on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn packets_by_flow(&self) -> Result<Vec<u32>, BpfError> {
        let map = &self.skel.maps.flow_counts;
        let counts = map
            .lookup_batch(1 << 16, MapFlags::ANY, MapFlags::ANY)
            .map_err(|error| wrap("reading the flows of the sink", error))?;
        Ok(counts
            .map(|(_, value)| {
                value
                    .first_chunk()
                    .map_or(0, |packets| u32::from_ne_bytes(*packets))
            })
            .collect())
    }
}

/// The Ethernet address of an interface.
///
/// # Errors
/// There is no such interface.
pub fn mac(interface: &str) -> io::Result<[u8; 6]> {
    crate::kernel::interface_mac(interface)
}

/// A value for each CPU.
fn per_cpu(map: &dyn MapCore, key: u32) -> Result<Vec<Vec<u8>>, BpfError> {
    Ok(map
        .lookup_percpu(&key.to_ne_bytes(), MapFlags::ANY)
        .map_err(|error| wrap("reading the sink", error))?
        .unwrap_or_default())
}

/// The word of an index of a map's value.
fn word_at(value: &[u8], word: usize) -> u64 {
    value
        .get(word * 8..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

fn attach(program: &libbpf_rs::ProgramMut<'_>, interface: &str) -> Result<Link, BpfError> {
    let index = interface_index(interface).ok_or_else(|| BpfError::NoInterface(interface.to_owned()))?;
    program
        .attach_xdp(
            i32::try_from(index)
                .map_err(|_| BpfError::system(interface, io::ErrorKind::InvalidInput.into()))?,
        )
        .map_err(|error| wrap(&format!("attaching to `{interface}`"), error))
}

#[cfg(test)]
mod tests {
    use super::middle_of;

    /// The program's `bucket_of`, from its specification: 128 buckets for each power of two.
    fn bucket_of(value: u64) -> u64 {
        match value {
            0..128 => value,
            _ => {
                let power = u64::from(value.ilog2());
                (power - 6) * 128 + (value - (1 << power)) / (1 << (power - 7))
            }
        }
    }

    #[test]
    fn the_middle_of_a_bucket_is_within_0_8_percent_of_its_values() {
        let values =
            (0..1000).chain((10..40).flat_map(|power| [1 << power, (1 << power) + 12_345, (2 << power) - 1]));
        for value in values.filter(|value| *value < 1 << 40) {
            let middle = middle_of(bucket_of(value));
            assert_eq!(bucket_of(middle), bucket_of(value), "{value}");
            let error = middle.abs_diff(value) as f64 / value.max(1) as f64;
            assert!(error <= 1.0 / 128.0, "{value} as {middle}");
        }
    }
}
