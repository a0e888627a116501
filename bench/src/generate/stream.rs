//! What is sent: addresses, flows, lengths and scripts, as the generator in the kernel takes them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use anyhow::{Context, bail, ensure};
use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder, TcpHeader,
};
use ringwall_bpf::generator::{Load, MAX_COUNTED_FLOWS, MAX_SLOTS, STAMP, TEMPLATE, Template};

/// Bytes of the frame check sequence, which lengths of RFC 2544 count and veths do not have.
const CHECK_SEQUENCE: u16 = 4;
/// Shortest frame of Ethernet without the frame check sequence.
const SHORTEST: u16 = 60;
/// A mix of lengths as on the internet: FD.io CSIT's `IMIX_v4_1`.
pub(crate) const IMIX: [(u16, u32); 3] = [(64, 28), (570, 16), (1518, 4)];
/// Time to live of what is sent.
const TTL: u8 = 64;

/// Consecutive addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// The first one
    pub(crate) first: IpAddr,
    /// How many; at least 1
    pub(crate) count: u32,
}

/// `ADDRESS`, `ADDRESS-ADDRESS` or `NETWORK/LENGTH`.
impl FromStr for Addresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = |text: &str| {
            text.parse::<IpAddr>()
                .map_err(|_| format!("`{text}` is no IP address; give ADDRESS, FIRST-LAST or NETWORK/LENGTH"))
        };
        let number = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        };
        if let Some((first, last)) = text.split_once('-') {
            let (first, last) = (address(first)?, address(last)?);
            if first.is_ipv4() != last.is_ipv4() || last < first {
                return Err(format!(
                    "`{text}`: the last address must come after the first, in the same family"
                ));
            }
            let count = u32::try_from(number(last) - number(first) + 1)
                .map_err(|_| format!("`{text}`: more than 4,294,967,295 addresses"))?;
            return Ok(Self { first, count });
        }
        if text.contains('/') {
            let network: ipnet::IpNet = text.parse().map_err(|_| {
                format!("`{text}` is no network; give NETWORK/LENGTH, for example 10.0.0.0/24")
            })?;
            let bits = u32::from(network.max_prefix_len() - network.prefix_len());
            return Ok(Self {
                first: network.network(),
                count: 1_u32
                    .checked_shl(bits)
                    .filter(|count| *count > 0)
                    .unwrap_or(u32::MAX),
            });
        }
        Ok(Self {
            first: address(text)?,
            count: 1,
        })
    }
}

/// Consecutive ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    /// The first one
    pub(crate) first: u16,
    /// How many; at least 1
    pub(crate) count: u32,
}

/// `PORT` or `PORT-PORT`.
impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| {
            text.parse::<u16>()
                .map_err(|_| format!("`{text}` is no port; give PORT or FIRST-LAST, from 0 to 65535"))
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if last < first {
            return Err(format!("`{text}`: the last port must not be below the first"));
        }
        Ok(Self {
            first,
            count: u32::from(last - first) + 1,
        })
    }
}

/// Lengths of frames with the frame check sequence, and how often each comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sizes(pub(crate) Vec<(u16, u32)>);

/// `imix`, `LENGTH` or `LENGTH:WEIGHT,LENGTH:WEIGHT...`.
impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "imix" {
            return Ok(Self(IMIX.to_vec()));
        }
        let one = |part: &str| {
            let (length, weight) = part.split_once(':').unwrap_or((part, "1"));
            let length = length.parse().ok()?;
            let weight = weight.parse().ok().filter(|weight| *weight > 0)?;
            Some((length, weight))
        };
        text.split(',')
            .map(|part| one(part).ok_or_else(|| format!("`{part}`: give LENGTH, LENGTH:WEIGHT or imix")))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == IMIX {
            return f.write_str("IMIX");
        }
        let parts: Vec<String> = match self.0.as_slice() {
            [(length, _)] => vec![length.to_string()],
            all => all
                .iter()
                .map(|(length, weight)| format!("{length}:{weight}"))
                .collect(),
        };
        f.write_str(&parts.join(","))
    }
}

impl Sizes {
    /// Indices of lengths in the order in which they are sent, each spread evenly.
    fn sequence(&self) -> anyhow::Result<Vec<u8>> {
        let divisor = self
            .0
            .iter()
            .fold(0, |divisor, (_, weight)| common_divisor(divisor, *weight));
        let weights: Vec<u32> = self.0.iter().map(|(_, weight)| weight / divisor.max(1)).collect();
        let total: u32 = weights.iter().sum();
        ensure!(
            total as usize <= MAX_SLOTS,
            "the weights of {self} need a sequence of {total} frames, at most {MAX_SLOTS} fit: give rounder ones"
        );
        // Each turn the length that is furthest behind its share.
        let mut sent = vec![0_u32; weights.len()];
        let sequence = (1..=total).map(|turn| {
            let lag = |index: usize| i64::from(weights[index] * turn) - i64::from(sent[index] * total);
            let next = (0..weights.len())
                .rev()
                .max_by_key(|index| lag(*index))
                .unwrap_or_default();
            sent[next] += 1;
            next as u8
        });
        Ok(sequence.collect())
    }
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// What frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    /// Datagrams.
    Udp,
    /// Connections: SYN, ACK, so many segments with data and, if they are closed, FIN, ACK. Each round of the flows is a step,
    /// and after the last one begins the next connection.
    Tcp {
        /// Segments with data
        data: u8,
        /// Whether they end
        closes: bool,
    },
    /// SYN after SYN, each a flow of its own.
    SynFlood,
}

impl Script {
    /// Frames of a flow before the next one begins in its place.
    pub(crate) fn steps(self) -> u64 {
        match self {
            Self::Udp | Self::SynFlood => 1,
            Self::Tcp { data, closes } => u64::from(data) + if closes { 4 } else { 2 },
        }
    }
}

/// A load.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    /// Ethernet addresses of source and destination
    pub(crate) macs: ([u8; 6], [u8; 6]),
    pub(crate) from: Addresses,
    pub(crate) to: Addresses,
    pub(crate) from_ports: Ports,
    pub(crate) to_ports: Ports,
    pub(crate) script: Script,
    /// None for the shortest frames that carry a stamp
    pub(crate) sizes: Option<Sizes>,
    /// Flows at a time
    pub(crate) flows: u32,
    /// Whether each round of them is in an order without a pattern
    pub(crate) shuffled: bool,
    /// After how many frames the oldest flow ends and a new one begins; 0 for never
    pub(crate) new_flow_every: u64,
}

impl Stream {
    /// Different flows that addresses and ports make; flows of higher numbers are those again.
    pub(crate) fn distinct_flows(&self) -> u64 {
        [
            self.from.count,
            self.to.count,
            self.from_ports.count,
            self.to_ports.count,
        ]
        .iter()
        .fold(1, |product: u64, count| product.saturating_mul(u64::from(*count)))
    }

    /// How many flows that a number of frames has.
    pub(crate) fn flows_of(&self, frames: u64) -> u64 {
        let flows = u64::from(self.flows);
        match self.script {
            Script::Udp if self.new_flow_every > 0 => flows + frames / self.new_flow_every,
            Script::Udp => flows.min(frames),
            Script::Tcp { .. } => frames.div_ceil(flows * self.script.steps()).max(1) * flows,
            Script::SynFlood => frames,
        }
    }

    /// Lengths of frames, with the frame check sequence.
    pub(crate) fn sizes(&self) -> Sizes {
        self.sizes
            .clone()
            .unwrap_or_else(|| Sizes(vec![(self.shortest() + CHECK_SEQUENCE, 1)]))
    }

    fn is_v6(&self) -> bool {
        self.from.first.is_ipv6()
    }

    fn headers(&self) -> u16 {
        let network = if self.is_v6() { 40 } else { 20 };
        let transport = if self.script == Script::Udp { 8 } else { 20 };
        14 + network + transport
    }

    /// Shortest frame with a stamp, without the frame check sequence.
    fn shortest(&self) -> u16 {
        (self.headers() + STAMP as u16).max(SHORTEST)
    }

    /// For the generator; the sink counts flows of the first `frames` frames.
    ///
    /// # Errors
    /// Says which of the options do not go together.
    pub(crate) fn load(&self, frames: u64) -> anyhow::Result<Load> {
        ensure!(
            self.from.first.is_ipv4() == self.to.first.is_ipv4(),
            "{} and {} are of two families: give both in IPv4 or both in IPv6",
            self.from.first,
            self.to.first
        );
        ensure!(self.flows > 0, "0 flows: give at least 1");
        ensure!(
            self.distinct_flows() >= u64::from(self.flows),
            "addresses and ports make {} flows, {} are wanted: give wider ranges, for example --from-ports 1024-65535",
            self.distinct_flows(),
            self.flows
        );
        ensure!(
            self.new_flow_every == 0 || self.script == Script::Udp,
            "flows of TCP begin with their script: leave --new-flows out"
        );
        let sizes = self.sizes();
        let templates = match self.script {
            Script::Udp => sizes
                .0
                .iter()
                .map(|(length, _)| self.datagram(*length))
                .collect::<Result<Vec<_>, _>>()?,
            Script::Tcp { data, closes } => self.connection(data, closes, &sizes)?,
            Script::SynFlood => vec![self.segment(0, 0, true, false, None)?],
        };
        let slots = match self.script {
            Script::Udp => sizes.sequence()?,
            Script::Tcp { .. } | Script::SynFlood => (0..templates.len() as u8).collect(),
        };
        Ok(Load {
            templates,
            slots,
            v6: self.is_v6(),
            tcp: self.script != Script::Udp,
            flows: self.flows,
            shuffled: self.shuffled,
            new_flow_every: self.new_flow_every,
            from_count: self.from.count,
            to_count: self.to.count,
            from_ports: self.from_ports.count,
            to_ports: self.to_ports.count,
            counted_flows: self.flows_of(frames).clamp(1, u64::from(MAX_COUNTED_FLOWS)) as u32,
        })
    }

    fn datagram(&self, size: u16) -> anyhow::Result<Template> {
        let payload = self.room(size)?;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.macs.0, self.macs.1)
            .ip(self.network(IpNumber::UDP)?)
            .udp(self.from_ports.first, self.to_ports.first)
            .write_to_vec(&mut frame, &vec![0; usize::from(payload)])
            .map_err(|error| anyhow::anyhow!("building a datagram: {error:?}"))?;
        template(&frame, true)
    }

    /// Bytes that a frame of a size carries behind its headers.
    fn room(&self, size: u16) -> anyhow::Result<u16> {
        size.checked_sub(CHECK_SEQUENCE)
            .filter(|length| *length >= self.shortest())
            .map(|length| length - self.headers())
            .with_context(|| {
                format!(
                    "frames of {size} bytes, check sequence included, have no room for headers and a stamp of {STAMP} bytes: give \
                     --size {} or more",
                    self.shortest() + CHECK_SEQUENCE
                )
            })
    }

    /// The templates of a script's steps. Sequence numbers count from the connection's first one.
    fn connection(&self, data: u8, closes: bool, sizes: &Sizes) -> anyhow::Result<Vec<Template>> {
        let [(size, _)] = sizes.0.as_slice() else {
            bail!("segments of TCP have one length: give --size LENGTH");
        };
        ensure!(
            data <= 12,
            "{data} segments with data: at most 12 fit into a script"
        );
        let length = u32::from(self.room(*size)?);
        let end = 1 + u32::from(data) * length;
        let mut steps = vec![
            self.segment(0, 0, true, false, None)?,
            self.segment(1, 1, false, false, None)?,
        ];
        for index in 0..u32::from(data) {
            steps.push(self.segment(1 + index * length, 1, false, false, Some(length as u16))?);
        }
        if closes {
            steps.push(self.segment(end, 1, false, true, None)?);
            steps.push(self.segment(end + 1, 2, false, false, None)?);
        }
        Ok(steps)
    }

    fn segment(
        &self,
        sequence: u32,
        acknowledged: u32,
        syn: bool,
        fin: bool,
        payload: Option<u16>,
    ) -> anyhow::Result<Template> {
        let mut header = TcpHeader::new(self.from_ports.first, self.to_ports.first, sequence, u16::MAX);
        (header.syn, header.fin, header.ack, header.psh) = (syn, fin, !syn, payload.is_some());
        header.acknowledgment_number = acknowledged;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.macs.0, self.macs.1)
            .ip(self.network(IpNumber::TCP)?)
            .tcp_header(header)
            .write_to_vec(&mut frame, &vec![0; usize::from(payload.unwrap_or(0))])
            .map_err(|error| anyhow::anyhow!("building a segment: {error:?}"))?;
        template(&frame, payload.is_some())
    }

    /// The builder fills in lengths and checksums.
    fn network(&self, protocol: IpNumber) -> anyhow::Result<IpHeaders> {
        Ok(match (self.from.first, self.to.first) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                IpHeaders::Ipv4(ipv4(from, to, protocol)?, Default::default())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                IpHeaders::Ipv6(ipv6(from, to, protocol), Default::default())
            }
            _ => bail!("two families"),
        })
    }
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: IpNumber) -> anyhow::Result<Ipv4Header> {
    let mut header =
        Ipv4Header::new(0, TTL, protocol, from.octets(), to.octets()).context("building an IPv4 header")?;
    header.dont_fragment = true;
    header.fragment_offset = IpFragOffset::ZERO;
    Ok(header)
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: IpNumber) -> Ipv6Header {
    Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: 0,
        next_header: protocol,
        hop_limit: TTL,
        source: from.octets(),
        destination: to.octets(),
    }
}

/// Of a whole frame, padded to Ethernet's shortest.
fn template(frame: &[u8], stamped: bool) -> anyhow::Result<Template> {
    let mut headers = [0; TEMPLATE];
    let kept = frame.len().min(TEMPLATE);
    headers[..kept].copy_from_slice(&frame[..kept]);
    Ok(Template {
        headers,
        length: u16::try_from(frame.len())
            .context("a frame of more than 65,535 bytes")?
            .max(SHORTEST),
        stamped,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::{Addresses, IMIX, Ports, Sizes};

    #[test]
    fn ranges_of_addresses_and_ports_are_read() {
        let count = |text: &str| text.parse::<Addresses>().map(|addresses| addresses.count);
        assert_eq!(count("10.0.0.0/24"), Ok(256));
        assert_eq!(count("10.0.0.9"), Ok(1));
        assert_eq!(count("10.0.0.250-10.0.1.1"), Ok(8));
        assert_eq!(count("fd00::/100"), Ok(1 << 28));
        assert_eq!(count("::/0"), Ok(u32::MAX));
        for wrong in [
            "10.0.0",
            "10.0.0.2-10.0.0.1",
            "10.0.0.1-fd00::1",
            "10.0.0.0/33",
            "::-ffff::",
        ] {
            assert!(
                count(wrong)
                    .unwrap_err()
                    .contains(wrong.split('-').next().unwrap()),
                "{wrong}"
            );
        }
        assert_eq!(
            "1024-65535".parse(),
            Ok(Ports {
                first: 1024,
                count: 64512
            })
        );
        assert_eq!("0-65535".parse::<Ports>().unwrap().count, 65_536);
        assert!("7-6".parse::<Ports>().is_err() && "70000".parse::<Ports>().is_err());
    }

    #[test]
    fn imix_is_spread_and_keeps_its_shares() {
        let sizes: Sizes = "imix".parse().unwrap();
        let sequence = sizes.sequence().unwrap();
        let count = |index: u8| sequence.iter().filter(|kind| **kind == index).count();
        assert_eq!((sequence.len(), count(0), count(1), count(2)), (12, 7, 4, 1));
        assert!(
            !sequence
                .windows(4)
                .any(|four| four.iter().all(|kind| *kind == four[0])),
            "{sequence:?}"
        );
        assert_eq!("64:28,570:16,1518:4".parse::<Sizes>().unwrap().0, IMIX);
        assert!("64:1,128:1000".parse::<Sizes>().unwrap().sequence().is_err());
        assert!("64:0".parse::<Sizes>().is_err() && "".parse::<Sizes>().is_err());
    }
}
