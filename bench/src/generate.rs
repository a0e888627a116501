//! `ringwall-bench gen`: load for a person, and what arrived of it.

pub(crate) mod sockets;
pub(crate) mod stream;

use std::{
    fs::File,
    os::fd::AsFd,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use hdrhistogram::Histogram;
use ringwall_bpf::generator::{Generator, Order, Received, Sent};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use self::stream::{Addresses, Ports, Script, Sizes, Stream};
use crate::{
    arguments::seconds,
    report::{count, number},
};

/// Options of the generator.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n\n\
    1,000 flows of 64-byte frames out of eth1, counted at eth0 in the namespace `far`:\n  \
    ringwall-bench gen --interface eth1 --to-mac 02:00:00:00:00:02 --sink far:eth0 \\\n    \
      --from 10.111.0.10-10.111.0.109 --to 198.18.0.0/24 --flows 1000 \\\n    \
      --rate 500000 --seconds 10\n\n\
    One million flows over IPv6 without a pattern, three lengths, as fast as possible:\n  \
    ringwall-bench gen --interface eth1 --to-mac 02:00:00:00:00:02 \\\n    \
      --from fd00:111::/112 --to 2001:db8::/112 --flows 1000000 --shuffled \\\n    \
      --size 84:28,570:16,1518:4 --frames 10000000\n\n\
    20,000 connections a second of SYN, ACK, one segment, FIN, ACK; the sink answers:\n  \
    ringwall-bench gen --interface eth1 --to-mac 02:00:00:00:00:02 --sink far:eth0 \\\n    \
      --from 10.111.0.10 --to 198.18.0.0/24 --from-ports 1024-65535 --to-ports 80 \\\n    \
      --tcp 1 --flows 1000 --rate 100000 --seconds 10\n\n\
    100,000 SYNs a second from forged sources:\n  \
    ringwall-bench gen --interface eth1 --to-mac 02:00:00:00:00:02 --syn-flood \\\n    \
      --from 198.18.0.0/15 --to 10.111.0.10 --to-ports 80 --rate 100000\n\n\
    64 real sockets in the namespace `near`, to a receiver in `far`:\n  \
    ringwall-bench gen --sockets --interface near: --sink far: \\\n    \
      --to 10.111.0.11 --to-ports 7000 --flows 64 --seconds 5\n\n\
    Interfaces are INTERFACE or NETNS:INTERFACE; a NETNS is one of `ip netns list`, or a file such as /proc/PID/ns/net.\n\
    Lengths count the frame check sequence, as RFC 2544 does; on a veth frames have 4 bytes fewer.\n\
    The sender takes one CPU; pin it by `taskset`. Needs root and Linux 5.18. Status 2 where it cannot send.")]
pub(crate) struct Options {
    /// Interface that sends; with --sockets, NETNS: or nothing
    #[arg(long, value_name = "[NETNS:]INTERFACE")]
    interface: Option<InterfaceInNetns>,
    /// Interface that counts what arrives, on this machine; it carries no other XDP program meanwhile
    #[arg(long, value_name = "[NETNS:]INTERFACE")]
    sink: Option<InterfaceInNetns>,
    /// Ethernet address that frames go to; that of the router, where there is one
    #[arg(long, value_name = "MAC", required_unless_present = "sockets")]
    to_mac: Option<Mac>,
    /// Ethernet address that frames come from
    #[arg(long, value_name = "MAC", default_value = "02:00:00:00:00:01")]
    from_mac: Mac,
    /// Source addresses: ADDRESS, FIRST-LAST or NETWORK/LENGTH; they change fastest from flow to flow
    #[arg(long, value_name = "ADDRESSES", required_unless_present = "sockets")]
    from: Option<Addresses>,
    /// Destination addresses
    #[arg(long, value_name = "ADDRESSES")]
    to: Addresses,
    /// Source ports: PORT or FIRST-LAST
    #[arg(long, value_name = "PORTS", default_value = "1024")]
    from_ports: Ports,
    /// Destination ports
    #[arg(long, value_name = "PORTS", default_value = "53")]
    to_ports: Ports,
    /// Flows at a time; with --sockets sockets, or clients of --tcp
    #[arg(long, default_value_t = 1)]
    flows: u32,
    /// Send each round of the flows in an order without a pattern; in order, caches look better than they are
    #[arg(long)]
    shuffled: bool,
    /// New flows per second; for each that begins, the oldest ends
    #[arg(long, value_name = "RATE", requires = "rate", conflicts_with_all = ["tcp", "syn_flood", "sockets"])]
    new_flows: Option<u64>,
    /// Lengths of frames: LENGTH, LENGTH:WEIGHT,... or imix (64:28,570:16,1518:4) [default: the shortest]
    #[arg(long, value_name = "LENGTHS")]
    size: Option<Sizes>,
    /// Send TCP connections instead of datagrams, with so many segments of data each; the sink answers
    #[arg(long, value_name = "SEGMENTS")]
    tcp: Option<u8>,
    /// Do not close the connections of --tcp: those that are open become more and more
    #[arg(long, requires = "tcp", conflicts_with = "sockets")]
    stay_open: bool,
    /// Send SYN after SYN, each a flow of its own
    #[arg(long, conflicts_with = "tcp")]
    syn_flood: bool,
    /// Frames per second [default: as fast as possible]
    #[arg(long, value_name = "RATE", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Frames to send
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    frames: Option<u64>,
    /// How long to send; without --rate, a million frames a second are assumed
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 1.0,
        value_parser = seconds,
        conflicts_with = "frames"
    )]
    seconds: f64,
    /// Send by sockets of the kernel, not by frames of the generator: of one length, to one address and port
    #[arg(long, conflicts_with_all = ["from", "from_mac", "to_mac", "from_ports", "shuffled"])]
    sockets: bool,
    /// How results are printed
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    /// Lines for people
    Text,
    /// One JSON object
    Json,
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl std::str::FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16).ok())
            .collect();
        bytes
            .and_then(|bytes| Some(Self(bytes.try_into().ok()?)))
            .ok_or_else(|| format!("`{text}` is no Ethernet address, such as 02:00:00:00:00:01"))
    }
}

/// An interface in a network namespace.
#[derive(Clone, Debug)]
pub(crate) struct InterfaceInNetns {
    netns: Option<String>,
    interface: String,
}

impl std::str::FromStr for InterfaceInNetns {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (netns, interface) = match text.rsplit_once(':') {
            Some((netns, interface)) => (Some(netns.to_owned()), interface),
            None => (None, text),
        };
        Ok(Self {
            netns,
            interface: interface.to_owned(),
        })
    }
}

impl InterfaceInNetns {
    /// Puts the calling thread into the namespace, for good.
    fn enter(&self) -> anyhow::Result<()> {
        let Some(netns) = &self.netns else { return Ok(()) };
        let file = if netns.contains('/') {
            netns.clone()
        } else {
            format!("/run/netns/{netns}")
        };
        let open = File::open(&file).with_context(|| {
            format!("no network namespace `{netns}` ({file}); `ip netns list` names those there are")
        })?;
        move_into_link_name_space(open.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter network namespace `{netns}`"))
    }

    /// Runs a function in the namespace, on a thread of its own.
    fn within<T: Send>(&self, function: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| self.enter().and_then(|()| function()))
                .join()
                .map_err(|_| anyhow!("a thread panicked"))?
        })
    }
}

/// How long frames may be under way after the last one was sent.
const UNDER_WAY: Duration = Duration::from_millis(200);

/// Sends and prints. Status 2 where it cannot.
pub(crate) fn run(options: &Options) -> ExitCode {
    let result = if options.sockets {
        sockets::send(options)
    } else {
        send(options)
    };
    match result {
        Ok(outcome) => {
            match options.output {
                Output::Text => print!("{}", outcome.text()),
                Output::Json => println!("{}", outcome.json()),
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

impl Options {
    fn frames(&self) -> u64 {
        self.frames
            .unwrap_or_else(|| (self.rate.unwrap_or(1_000_000) as f64 * self.seconds) as u64)
    }

    fn stream(&self) -> anyhow::Result<Stream> {
        Ok(Stream {
            macs: (
                self.from_mac.0,
                self.to_mac
                    .context("give --to-mac, the Ethernet address that frames go to")?
                    .0,
            ),
            from: self
                .from
                .context("give --from, the addresses that frames come from")?,
            to: self.to,
            from_ports: self.from_ports,
            to_ports: self.to_ports,
            script: match (self.tcp, self.syn_flood) {
                (Some(data), _) => Script::Tcp {
                    data,
                    closes: !self.stay_open,
                },
                (None, true) => Script::SynFlood,
                (None, false) => Script::Udp,
            },
            sizes: self.size.clone(),
            flows: self.flows,
            shuffled: self.shuffled,
            new_flow_every: match (self.new_flows, self.rate) {
                (Some(new), Some(rate)) if new > 0 => frames_per_new_flow(new, rate)?,
                _ => 0,
            },
        })
    }
}

/// Every how many frames a flow has to begin.
fn frames_per_new_flow(new: u64, rate: u64) -> anyhow::Result<u64> {
    ensure!(
        new <= rate,
        "{new} new flows per second need as many frames; --rate is {rate}"
    );
    let every = rate / new;
    let (more, fewer) = (rate / every, rate / (every + 1));
    ensure!(
        (more - new) * 100 <= new,
        "--new-flows {new}: a flow begins with each frame of a number, so of --rate {rate} there can be {fewer} or {more} new flows a \
         second"
    );
    Ok(every)
}

/// What was sent and what arrived.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) stream: String,
    pub(crate) ordered_rate: Option<u64>,
    pub(crate) sent: Sent,
    /// Frames of those that carry a stamp, so that a sink can tell them
    pub(crate) stamped: u64,
    pub(crate) arrived: Option<Arrived>,
}

/// What a sink has seen.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) others: u64,
    pub(crate) reordered: u64,
    /// Packets of each flow, from the first one on
    pub(crate) by_flow: Vec<u32>,
    /// Nanoseconds
    pub(crate) latency: Histogram<u64>,
}

/// A histogram of what sinks in the kernel have counted, nanoseconds; three digits.
pub(crate) fn histogram(received: &Received) -> anyhow::Result<Histogram<u64>> {
    let mut histogram = Histogram::new(3).map_err(|error| anyhow!("making a histogram: {error}"))?;
    for (latency, packets) in received.latencies() {
        histogram
            .record_n(latency, packets)
            .map_err(|error| anyhow!("a latency of {latency} ns: {error}"))?;
    }
    Ok(histogram)
}

fn send(options: &Options) -> anyhow::Result<Outcome> {
    let interface = options
        .interface
        .as_ref()
        .filter(|place| !place.interface.is_empty())
        .context("give --interface, the interface that sends")?;
    let stream = options.stream()?;
    let frames = options.frames();
    let generator = Generator::load(&stream.load(frames)?)?;
    let is_tcp = stream.script != Script::Udp;
    let _sink = match &options.sink {
        Some(place) => Some(place.within(|| {
            Ok(if is_tcp {
                generator.answer(&place.interface)?
            } else {
                generator.sink(&place.interface)?
            })
        })?),
        None => None,
    };
    let sent = interface.within(|| {
        let _native = generator.pass(&interface.interface)?;
        let order = Order {
            first: 0,
            count: frames,
            rate: options.rate,
            answered: false,
        };
        Ok(generator.send(&interface.interface, order)?)
    })?;
    let arrived = match &options.sink {
        Some(_) => Some(settled(&generator)?),
        None => None,
    };
    Ok(Outcome {
        stream: describe(&stream),
        ordered_rate: options.rate,
        sent,
        stamped: stamped(&stream, sent.frames),
        arrived,
    })
}

/// Waits until nothing more arrives.
fn settled(generator: &Generator) -> anyhow::Result<Arrived> {
    let start = Instant::now();
    let mut received = generator.received()?;
    loop {
        thread::sleep(UNDER_WAY / 4);
        let later = generator.received()?;
        if later == received && start.elapsed() >= UNDER_WAY {
            break;
        }
        received = later;
    }
    Ok(Arrived {
        packets: received.packets,
        bytes: received.bytes,
        others: received.others,
        reordered: received.reordered,
        by_flow: generator.packets_by_flow()?,
        latency: histogram(&received)?,
    })
}

/// Frames among the first ones that carry a stamp.
pub(crate) fn stamped(stream: &Stream, frames: u64) -> u64 {
    match stream.script {
        Script::Udp => frames,
        Script::SynFlood => 0,
        Script::Tcp { data, .. } => {
            // Steps 2 to 2 + data of each round of the flows.
            let (flows, steps) = (u64::from(stream.flows), stream.script.steps());
            let (scripts, rest) = (frames / (flows * steps), frames % (flows * steps));
            let data = u64::from(data) * flows;
            scripts * data + rest.saturating_sub(2 * flows).min(data)
        }
    }
}

fn describe(stream: &Stream) -> String {
    let order = if stream.shuffled { "shuffled" } else { "in order" };
    let what = match stream.script {
        Script::Udp => format!("{}-byte UDP", stream.sizes()),
        Script::Tcp { data, closes } => format!(
            "TCP connections with {data} segments of {} bytes{}",
            stream.sizes(),
            if closes { "" } else { " that stay open" }
        ),
        Script::SynFlood => "SYN flood".to_owned(),
    };
    format!("{what}, {} flows {order}", count(stream.flows.into()))
}

/// Percentiles that are printed.
const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

impl Outcome {
    fn text(&self) -> String {
        let Self { sent, stamped, .. } = self;
        let mut text = format!(
            "{}\nsent      {} frames in {:.3} s: {} a second{}\n",
            self.stream,
            count(sent.frames),
            sent.took.as_secs_f64(),
            number(sent.rate()),
            match self.ordered_rate {
                Some(rate) => format!(
                    " of {} ordered{}",
                    count(rate),
                    match sent.behind.as_micros() {
                        0 => String::new(),
                        late => format!(", {} us late in sum", count(late as u64)),
                    }
                ),
                None => String::new(),
            },
        );
        let Some(arrived) = &self.arrived else { return text };
        let lost = stamped.saturating_sub(arrived.packets);
        text += &format!(
            "received  {} of {} that carry a stamp, lost {} ({:.4} %), reordered {}, others {}\n",
            count(arrived.packets),
            count(*stamped),
            count(lost),
            lost as f64 * 100.0 / (*stamped).max(1) as f64,
            count(arrived.reordered),
            count(arrived.others)
        );
        let (least, most) = arrived.flow_range();
        text += &format!(
            "flows     {} counted, {} to {} packets each\n",
            count(arrived.by_flow.len() as u64),
            count(least.into()),
            count(most.into())
        );
        if arrived.packets > 0 {
            let us = |nanoseconds: u64| number(nanoseconds as f64 / 1e3);
            let latency = &arrived.latency;
            let percentiles: Vec<String> = PERCENTILES
                .iter()
                .map(|percentile| format!("p{percentile} {}", us(latency.value_at_percentile(*percentile))))
                .collect();
            text += &format!(
                "latency   least {}, {}, most {} us\n",
                us(latency.min()),
                percentiles.join(", "),
                us(latency.max())
            );
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let Self { sent, stamped, .. } = self;
        json!({
            "stream": self.stream,
            "sent": {
                "frames": sent.frames,
                "stamped": stamped,
                "seconds": sent.took.as_secs_f64(),
                "framesPerSecond": sent.rate(),
                "orderedPerSecond": self.ordered_rate,
                "lateMicroseconds": sent.behind.as_micros() as u64,
            },
            "received": self.arrived.as_ref().map(|arrived| json!({
                "frames": arrived.packets,
                "bytes": arrived.bytes,
                "lost": stamped.saturating_sub(arrived.packets),
                "reordered": arrived.reordered,
                "others": arrived.others,
                "flows": arrived.by_flow.len(),
                "framesPerFlow": [arrived.flow_range().0, arrived.flow_range().1],
                "latencyNanoseconds": {
                    "least": arrived.latency.min(),
                    "p50": arrived.latency.value_at_percentile(50.0),
                    "p90": arrived.latency.value_at_percentile(90.0),
                    "p99": arrived.latency.value_at_percentile(99.0),
                    "p99.9": arrived.latency.value_at_percentile(99.9),
                    "most": arrived.latency.max(),
                },
            })),
        })
    }
}

impl Arrived {
    /// Fewest and most packets of a flow.
    fn flow_range(&self) -> (u32, u32) {
        let counts = || self.by_flow.iter().copied();
        (counts().min().unwrap_or(0), counts().max().unwrap_or(0))
    }
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used)] // a test that panics has failed
mod tests;
