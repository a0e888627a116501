//! Input: a setup and what then happens to workers of a wire or a router: packets, answers to what came out, packets of
//! before with bytes changed, ICMP errors that quote them, fragments of them, raw frames, time, snapshots, routes, full
//! rings, restarts.
//!
//! What must hold: every frame is accounted for, always. A wire sends what it received, and nothing else. In enforcement
//! nothing leaves that policy does not allow under the snapshot in force: a packet that may begin a flow, or one that
//! answers such a packet, which left before by the port where the answer comes in; an ICMP error that quotes a packet of
//! such a flow and goes to its sender; a fragment whose first left before. Out of a wire the same comes for any number of
//! workers.

use std::collections::{BTreeMap, HashSet};

use arbitrary::{Arbitrary, Unstructured};
use ringwall_dataplane::{
    addr::Addr,
    classify::Snapshot,
    dataplane::{DataplaneConfig, Mode},
    failsafe::{Failsafe, FailsafeRule, Prefix},
    flow::RateLimit,
    port::PortId,
    time::Nanos,
    tunnels::Tunnels,
    wire::{FlowKey, Packet, Parsed, Transport, build::Template, parse, protocol, subject::NotSubjectTable},
};

use crate::{
    bed::{Bed, FRAME},
    headers::with_valid_checksum,
    world::{self, World, addr},
};

/// Steps of one input that count.
const STEPS: usize = 120;
/// Frames that are remembered.
const REMEMBERED: usize = 64;

/// How a scenario begins.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// 1: routed. 2: audit. 4: connections are picked up. 8: by answers, too. 16: no sequence numbers are asked.
    /// 32: failsafe rules. 64: tunnels are allowed. 128: this machine hosts the pods.
    flags: u8,
    /// Workers: 1 to 4. From 128 on also by one, and both are compared.
    workers: u8,
    /// Of the first snapshot; 128: there is none.
    world: u8,
    forwarding: u8,
    /// Frames that the transmit rings take at once; 0 is enough for all.
    room: u8,
}

#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Step {
    Packet {
        port: u8,
        packet: Plan,
    },
    /// To a packet that came out, from there.
    Answer {
        which: u8,
        tcp: u8,
        change: Change,
    },
    /// One that came in before, perhaps elsewhere.
    Replay {
        which: u8,
        port: u8,
        change: Change,
    },
    /// An ICMP error about one that came in before.
    Quote {
        which: u8,
        port: u8,
        from: u8,
        kind: u8,
        keep: u8,
        change: Change,
    },
    /// A part of one that came in before.
    Fragment {
        which: u8,
        port: u8,
        id: u8,
        begin: u8,
        length: u8,
        more: bool,
    },
    Raw {
        port: u8,
        bytes: Vec<u8>,
    },
    /// Milliseconds, or seconds.
    Wait {
        time: u16,
        seconds: bool,
    },
    Snapshot(u8),
    Forwarding(u8),
    /// The next packets come in one burst.
    Burst(u8),
    Restart,
}

/// A packet of the small cluster.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Plan {
    family: bool,
    src: u8,
    dst: u8,
    src_port: u8,
    dst_port: u8,
    kind: u8,
    /// Flags of TCP, chunk of SCTP, ...
    flags: u8,
    seq: u16,
    ack: u16,
    ttl: u8,
    /// Bytes of payload.
    payload: u8,
    vlan: u8,
    change: Change,
}

/// A byte to change.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Change {
    /// 0: none.
    at: u8,
    value: u8,
    /// Whether an IPv4 header's sum stays as it was.
    unmended: bool,
}

impl Change {
    fn apply(self, mut frame: Vec<u8>) -> Vec<u8> {
        if self.at == 0 {
            return frame;
        }
        let at = usize::from(self.at) - 1;
        if let Some(byte) = frame.get_mut(at) {
            *byte = self.value;
        }
        match with_valid_checksum(&frame) {
            Some(mended) if !self.unmended => mended,
            _ => frame,
        }
    }
}

const PORTS: [u16; 8] = [80, 53, 443, 5000, 1000, 4789, 6443, 8472];

impl Plan {
    fn frame(&self, routed: Option<u16>) -> Vec<u8> {
        let (src, dst) = (
            world::address_of(self.src, self.family),
            world::address_of(self.dst, self.family),
        );
        let mut template = Template::new(src, dst);
        if let Some(port) = routed {
            template.eth_dst = world::mac(port);
            template.eth_src = [6, 0, 0, 0, 0, 1 + self.src % 4];
        }
        template.ttl = if self.ttl & 0xf0 == 0 { self.ttl } else { 64 };
        if self.vlan & 0xc0 == 0xc0 {
            template.vlans = vec![u16::from(self.vlan & 3); 1 + usize::from(self.vlan >> 5 & 1)];
        }
        let [low, high] = [self.src_port, self.dst_port].map(|port| PORTS[usize::from(port) % PORTS.len()]);
        let payload = vec![0x5a; usize::from(self.payload) * if self.vlan & 0x10 == 0 { 1 } else { 6 }];
        let numbers = [u32::from(self.seq) << 8, u32::from(self.ack) << 8];
        let frame = match self.kind % 12 {
            0..=4 => template.tcp_at(low, high, self.flags, numbers, &payload),
            5 | 6 => template.udp(low, high, &payload),
            7 => template.sctp(low, high, self.flags),
            8 => template.echo(low, self.flags & 1 == 0),
            9 => template.icmp(
                self.flags,
                self.seq as u8,
                self.ack.to_be_bytes().repeat(2).try_into().unwrap_or([0; 4]),
                &payload,
            ),
            10 => template.ip(self.flags, &payload),
            _ => {
                template.extensions = vec![(self.flags, vec![0; 6]), (60, vec![self.seq as u8; 14])];
                template.options = vec![self.flags, 4, 4, 0];
                template.udp(low, high, &payload)
            }
        };
        self.change.apply(frame)
    }
}

/// What a set of flows looked like before the first packet: of a predecessor.
#[derive(Clone, Debug, Default)]
pub(crate) struct Predecessor {
    /// Its memory; empty for none.
    pub(crate) memory: Vec<u8>,
    /// Keys that its entries may have.
    pub(crate) keys: HashSet<FlowKey>,
}

/// A setup, and what happens.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) setup: Setup,
    pub(crate) steps: Vec<Step>,
}

impl Scenario {
    pub(crate) fn of(input: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        let setup = input.arbitrary()?;
        let mut steps = Vec::new();
        while steps.len() < STEPS && !input.is_empty() {
            steps.push(input.arbitrary()?);
        }
        Ok(Self { setup, steps })
    }
}

/// Checks one input.
pub fn run(data: &[u8]) {
    let Ok(scenario) = Scenario::of(&mut Unstructured::new(data)) else {
        return;
    };
    play(&scenario, *blake3::hash(data).as_bytes(), &Predecessor::default());
}

/// Plays a scenario; `secret` is what its author cannot know.
pub(crate) fn play(scenario: &Scenario, secret: [u8; 32], predecessor: &Predecessor) {
    let setup = scenario.setup;
    let many = 1 + usize::from(setup.workers % 4);
    // On a router packets wait for neighbours, and each worker has its own places for them.
    let one_by_one = setup.workers >= 128 && setup.room == 0 && setup.flags & 1 == 0;
    let result = Play::new(setup, many, secret, predecessor, one_by_one).play(&scenario.steps);
    if one_by_one && many > 1 {
        let alone = Play::new(setup, 1, secret, predecessor, true).play(&scenario.steps);
        assert_eq!(alone, result, "the number of workers shows");
    }
}

/// What came out, step by step.
type Sent = Vec<Vec<(PortId, Vec<u8>)>>;

/// A scenario under way.
struct Play {
    setup: Setup,
    routed: bool,
    config: DataplaneConfig,
    /// `None` only while it restarts.
    bed: Option<Bed>,
    /// Whether packets come one by one, so that results do not depend on the number of workers.
    one_by_one: bool,
    world: World,
    forwarding: u8,
    generation: u64,
    /// What came in, and what came out.
    received: Vec<(u16, Vec<u8>)>,
    sent: Vec<(u16, Vec<u8>)>,
    /// How often a frame came in by a port and has not left.
    inside: BTreeMap<(u16, Vec<u8>), u32>,
    /// Keys of what left, and by which port.
    left: HashSet<(FlowKey, u16)>,
    /// Keys of flows of which it is not known by which port their packets left: they may be a predecessor's, or have been
    /// judged again, since when their ends may be elsewhere.
    unbound: HashSet<FlowKey>,
    /// Datagrams whose first fragment left.
    datagrams: HashSet<(Addr, Addr, u32)>,
    /// Keys of what came in.
    known: HashSet<FlowKey>,
    bursts: u8,
}

impl Play {
    fn new(
        setup: Setup,
        workers: usize,
        secret: [u8; 32],
        predecessor: &Predecessor,
        one_by_one: bool,
    ) -> Self {
        let has = |bit: u8| setup.flags & bit != 0;
        let mut config = DataplaneConfig {
            workers,
            mode: if has(2) { Mode::Audit } else { Mode::Enforce },
            hosts_pods: has(128),
            tunnels: Tunnels {
                allowed: has(64),
                ..Tunnels::default()
            },
            ..Bed::config()
        };
        config.flow.pickup_answers = has(8);
        config.flow.tcp_strict = !has(16);
        config.flow.fragmented = 4;
        config.flow.icmp_errors = RateLimit {
            per_second: 4,
            burst: 8,
        };
        if has(32) {
            let rule = |from: &str, to: &str, length, ports| FailsafeRule {
                from: Prefix::new(addr(from), length),
                to: Prefix::new(addr(to), length),
                protocol: Some(protocol::TCP),
                ports,
            };
            config.failsafe = Failsafe(vec![
                rule("192.0.2.0", "10.0.0.0", 24, Some((6443, 6443))),
                rule("2001:db8::", "fd00::", 64, None),
            ]);
        }
        let start = Nanos::from_secs(1000);
        let bed = Bed::new(config.clone(), &predecessor.memory, start);
        let mut play = Self {
            setup,
            routed: has(1),
            config,
            bed: Some(bed),
            one_by_one,
            world: World {
                secret,
                bits: setup.world & 127,
            },
            forwarding: setup.forwarding,
            generation: 0,
            received: Vec::new(),
            sent: Vec::new(),
            inside: BTreeMap::new(),
            left: HashSet::new(),
            unbound: predecessor.keys.clone(),
            datagrams: HashSet::new(),
            known: HashSet::new(),
            bursts: 0,
        };
        play.begin();
        if !has(4) {
            play.wait(Nanos::from_secs(200));
        }
        play
    }

    fn bed(&mut self) -> &mut Bed {
        self.bed.as_mut().expect("there is one but while it restarts")
    }

    /// Publishes what is in force.
    fn begin(&mut self) {
        if self.setup.world < 128 {
            self.publish();
        }
        self.publish_forwarding();
        let room = match self.setup.room {
            0 => usize::MAX,
            room => usize::from(room),
        };
        for worker in &mut self.bed().workers {
            worker.io().limit_room(room);
        }
    }

    fn publish(&mut self) {
        self.generation += 1;
        let snapshot = self.world.snapshot(self.generation);
        self.bed().plane.snapshots.publish(snapshot);
    }

    fn publish_forwarding(&mut self) {
        let builder = if self.routed {
            world::routes(self.forwarding)
        } else {
            world::wires(self.forwarding)
        };
        self.bed().plane.forwarding.publish(builder.build());
    }

    fn wait(&mut self, time: Nanos) {
        let bed = self.bed();
        bed.now = bed.now.after(time);
    }

    fn play(mut self, steps: &[Step]) -> Sent {
        let mut results = Vec::new();
        let shown = std::env::var_os("FUZZ_SHOW").is_some();
        if shown {
            eprintln!("{:?}, {} workers", self.setup, self.config.workers);
        }
        for (nth, step) in steps.iter().enumerate() {
            if shown {
                eprintln!("{nth}: {step:?}");
            }
            self.take(nth, step);
            if self.bursts == 0 || self.one_by_one {
                results.push(self.run());
            } else {
                self.bursts -= 1;
            }
        }
        results.push(self.run());
        self.check_flows();
        results
    }

    fn take(&mut self, nth: usize, step: &Step) {
        let worker = nth;
        match step {
            Step::Packet { port, packet } => {
                let port = u16::from(*port) % 4;
                let frame = packet.frame(self.routed.then_some(port));
                self.receive(worker, port, frame);
            }
            Step::Answer { which, tcp, change } => {
                let Some((port, frame)) = nth_last(&self.sent, *which) else {
                    return;
                };
                if let Some(answer) = answer(&frame, *tcp, self.routed.then_some(port)) {
                    self.receive(worker, port, change.apply(answer));
                }
            }
            Step::Replay { which, port, change } => {
                let Some((before, frame)) = nth_last(&self.received, *which) else {
                    return;
                };
                let port = if *port < 128 { before } else { u16::from(*port) % 4 };
                self.receive(worker, port, change.apply(frame));
            }
            Step::Quote {
                which,
                port,
                from,
                kind,
                keep,
                change,
            } => {
                let Some((_, frame)) = nth_last(&self.received, *which) else {
                    return;
                };
                let port = u16::from(*port) % 4;
                if let Some(error) = quote(&frame, *from, *kind, *keep, self.routed.then_some(port)) {
                    self.receive(worker, port, change.apply(error));
                }
            }
            Step::Fragment {
                which,
                port,
                id,
                begin,
                length,
                more,
            } => {
                let Some((before, frame)) = nth_last(&self.received, *which) else {
                    return;
                };
                let port = if *port < 128 { before } else { u16::from(*port) % 4 };
                if let Some(part) = fragment_of(&frame, *id, *begin, *length, *more) {
                    self.receive(worker, port, part);
                }
            }
            Step::Raw { port, bytes } => {
                let bytes = bytes.get(..bytes.len().min(FRAME)).unwrap_or_default().to_vec();
                self.receive(worker, u16::from(*port) % 4, bytes);
            }
            Step::Wait { time, seconds } => {
                let milliseconds = u64::from(*time) * if *seconds { 1000 } else { 1 };
                self.wait(Nanos::from_millis(milliseconds));
            }
            Step::Snapshot(bits) => {
                // What is waiting was received before.
                let _ = self.run();
                self.world.bits = *bits;
                self.setup.world = 0;
                self.forget_ports();
                self.publish();
            }
            Step::Forwarding(bits) => {
                let _ = self.run();
                self.forwarding = *bits;
                self.publish_forwarding();
            }
            Step::Burst(frames) => self.bursts = *frames % 80,
            Step::Restart => self.restart(),
        }
    }

    fn receive(&mut self, worker: usize, port: u16, frame: Vec<u8>) {
        if !self.bed().inject(worker, port, &frame) {
            return;
        }
        if std::env::var_os("FUZZ_SHOW").is_some() {
            eprintln!("    into {port}: {:?}", parse(&frame));
        }
        for parsed in [parse(&frame), self.innermost(&frame)] {
            if let Parsed::Subject(packet) = parsed {
                self.known.insert(packet.key(0));
            }
        }
        *self.inside.entry((port, frame.clone())).or_default() += 1;
        self.received.push((port, frame));
        if self.received.len() > REMEMBERED {
            self.received.remove(0);
        }
    }

    /// Another process, with another number of workers, takes the flows over.
    fn restart(&mut self) {
        let _ = self.run();
        if self.one_by_one {
            return; // held packets are lost, and which are held depends on the workers
        }
        let Some(bed) = self.bed.take() else { return };
        let now = bed.now;
        let memory = bed.flow_memory();
        self.config.workers = self.config.workers % 4 + 1;
        self.bed = Some(Bed::new(self.config.clone(), &memory, now));
        self.inside.clear();
        self.datagrams.clear();
        self.forget_ports();
        self.begin();
    }

    fn forget_ports(&mut self) {
        self.unbound.extend(self.left.drain().map(|(key, _)| key));
    }

    fn run(&mut self) -> Vec<(PortId, Vec<u8>)> {
        let sent = self.bed().run();
        for (port, frame) in &sent {
            if std::env::var_os("FUZZ_SHOW").is_some() {
                eprintln!("    out of {}: {:?}", port.0, parse(frame));
            }
            self.check(port.0, frame);
            self.sent.push((port.0, frame.clone()));
        }
        let excess = self.sent.len().saturating_sub(REMEMBERED);
        self.sent.drain(..excess);
        sent
    }

    /// Whether a frame may leave by a port.
    fn check(&mut self, port: u16, frame: &[u8]) {
        let parsed = self.innermost(frame);
        if !self.routed {
            let from = (port ^ 1, frame.to_vec());
            let count = self.inside.get_mut(&from).filter(|count| **count > 0);
            *count.expect("a wire sends what it has received") -= 1;
        }
        let audit = self.config.mode == Mode::Audit;
        match parsed {
            Parsed::Malformed(reason) => {
                assert!(audit && !self.routed, "{} left: {frame:02x?}", reason.name());
            }
            Parsed::NotSubject(kind) => {
                let crosses = !self.routed && NotSubjectTable::WIRE.crosses(kind);
                assert!(crosses, "{} left", kind.name());
            }
            Parsed::Subject(packet) => {
                if !audit {
                    self.check_packet(port, &packet, frame);
                }
                self.left.insert((packet.key(0), port));
                if let Some(part) = packet.fragment.filter(|part| part.offset == 0) {
                    self.datagrams.insert((packet.src, packet.dst, part.id));
                }
            }
        }
    }

    fn snapshot(&self) -> Option<&Snapshot> {
        self.bed.as_ref()?.plane.snapshots.current()
    }

    /// A frame, or what is in its tunnel between nodes.
    fn innermost(&self, frame: &[u8]) -> Parsed {
        match self.snapshot() {
            Some(snapshot) => self.config.tunnels.innermost(snapshot, frame),
            None => parse(frame),
        }
    }

    /// Whether the snapshot in force allows a flow to begin.
    fn allows(&mut self, key: &FlowKey) -> bool {
        let config = &self.config;
        if config.failsafe.admits(key) {
            return true;
        }
        let this_node = config.hosts_pods && self.routed;
        let tunnels = !config.tunnels.allowed;
        let Some(snapshot) = self.bed.as_ref().and_then(|bed| bed.plane.snapshots.current()) else {
            return false;
        };
        let opaque = tunnels && world::is_tunnel(snapshot, key, &config.tunnels.ports);
        !opaque && world::allows(snapshot, key, this_node)
    }

    fn check_packet(&mut self, port: u16, packet: &Packet, frame: &[u8]) {
        if packet.is_later_fragment() {
            let datagram = (packet.src, packet.dst, packet.fragment.map_or(0, |part| part.id));
            assert!(
                self.datagrams.contains(&datagram),
                "a fragment without its first left: {packet:?}"
            );
            return;
        }
        let key = packet.key(0);
        if let Transport::IcmpError { quoted } = packet.transport {
            // One of the same addresses may have come in before; the router's own is about a packet that did.
            let about_known = self.known.contains(&packet.owner_key(0));
            if self.routed
                && GENERATED.iter().any(|own| addr(own) == packet.src)
                && (!self.known.contains(&key) || about_known)
            {
                return check_generated(packet, frame);
            }
            let quoted = quoted.unwrap_or_else(|| panic!("an error about nothing left: {packet:?}"));
            assert_eq!(quoted.src, packet.dst, "an error for another left");
            let about = packet.owner_key(0);
            let of_flow = [about, about.reversed()].iter().any(|key| {
                self.unbound.contains(key) || (0..4).any(|port| self.left.contains(&(*key, port)))
            });
            // Before the first snapshot it passes where the packet would.
            let failsafe =
                self.config.failsafe.admits(&about) || self.config.failsafe.admits(&about.reversed());
            // A tunnel packet has no flow, and the node that sent it may learn what became of it.
            let tunnels = &self.config.tunnels;
            let of_tunnel = tunnels.opens(about.protocol, about.src_port, about.dst_port)
                && self
                    .snapshot()
                    .is_some_and(|snapshot| world::between_nodes(snapshot, &about));
            assert!(
                of_flow || failsafe || of_tunnel,
                "an error about no flow left: {packet:?}"
            );
            return;
        }
        if self.routed {
            assert!(self.known.contains(&key), "what left never came in: {packet:?}");
        }
        if self.allows(&key) {
            return;
        }
        let reversed = key.reversed();
        let answers = self.unbound.contains(&reversed)
            || if self.routed {
                (0..4).any(|port| self.left.contains(&(reversed, port)))
            } else {
                self.left.contains(&(reversed, port ^ 1))
            }
            // Without a snapshot there is no state.
            || self.config.failsafe.admits(&reversed)
            || self.config.flow.pickup_answers && self.setup.flags & 4 != 0 && packet.protocol == protocol::TCP;
        assert!(
            answers && self.allows(&reversed),
            "policy allows neither this nor what it would answer: {packet:?}"
        );
    }

    /// What is shown of flows is allowed, as far as it says that it was asked under the snapshot in force.
    fn check_flows(&mut self) {
        let flows = self.bed().flows();
        for flow in flows {
            if flow.generation.0 != self.generation || self.generation == 0 {
                continue;
            }
            let allowed = self.allows(&flow.key);
            assert!(
                allowed || flow.would_drop.is_some() && self.config.mode == Mode::Audit,
                "a flow that policy denies: {flow:?}"
            );
        }
    }
}

/// Where this machine's own ICMP errors come from.
const GENERATED: [&str; 3] = ["169.254.1.1", "172.16.0.9", "fd16::9"];

/// An error of our own goes to who sent what it quotes, and is never about an error (RFC 1122 3.2.2, RFC 4443 2.4).
fn check_generated(packet: &Packet, frame: &[u8]) {
    let quoted = frame.get(usize::from(packet.l4) + 8..).unwrap_or_default();
    let (sender, number, l4) = if packet.src.is_v4() {
        let length = usize::from(quoted[0] & 15) * 4;
        (&quoted[12..16], quoted[9], quoted.get(length..))
    } else {
        (&quoted[8..24], quoted[6], quoted.get(40..))
    };
    assert!(
        packet.dst.octets().ends_with(sender),
        "an error of our own for another: {packet:?}"
    );
    let kind = l4.and_then(<[u8]>::first).copied();
    let about_error = match (number, kind) {
        (protocol::ICMP, Some(3 | 4 | 5 | 11 | 12)) => packet.src.is_v4(),
        (protocol::ICMPV6, Some(0..128 | 137)) => !packet.src.is_v4(),
        _ => false,
    };
    assert!(!about_error, "an error about an error: {packet:?}");
}

fn nth_last(frames: &[(u16, Vec<u8>)], which: u8) -> Option<(u16, Vec<u8>)> {
    let at = frames
        .len()
        .checked_sub(1 + usize::from(which) % frames.len().max(1))?;
    frames.get(at).cloned()
}

fn subject(frame: &[u8]) -> Option<Packet> {
    match parse(frame) {
        Parsed::Subject(packet) => Some(packet),
        _ => None,
    }
}

/// What the receiver of a frame would answer.
fn answer(frame: &[u8], tcp: u8, routed: Option<u16>) -> Option<Vec<u8>> {
    let packet = subject(frame)?;
    let mut template = Template::new(packet.dst, packet.src);
    if let Some(port) = routed {
        template.eth_dst = world::mac(port);
        template.eth_src = *frame.first_chunk()?;
    }
    let tags = packet.vlan;
    template.vlans = [tags >> 16, tags & 0xffff]
        .into_iter()
        .filter(|tag| *tag != 0)
        .map(|tag| tag as u16 & 0xfff)
        .collect();
    let word = |at: usize| {
        let bytes = frame.get(usize::from(packet.l4) + at..)?.first_chunk()?;
        Some(u32::from_be_bytes(*bytes))
    };
    Some(match packet.transport {
        Transport::Tcp { src, dst, .. } => template.tcp_at(
            dst,
            src,
            tcp,
            [word(8)?, word(4)?.wrapping_add(u32::from(tcp >> 6))],
            b"",
        ),
        Transport::Udp { src, dst } => template.udp(dst, src, b"answer"),
        Transport::Sctp { src, dst, .. } => template.sctp(dst, src, tcp),
        Transport::Echo { id, request } => template.echo(id, !request),
        Transport::IcmpError { .. } => return None,
        _ => template.ip(packet.protocol, &[0; 16]),
    })
}

/// An ICMP error about a frame.
fn quote(frame: &[u8], from: u8, kind: u8, keep: u8, routed: Option<u16>) -> Option<Vec<u8>> {
    let packet = subject(frame)?;
    let from = match from {
        0..128 => packet.dst,
        _ => world::address_of(from, !packet.src.is_v4()),
    };
    if from.is_v4() != packet.src.is_v4() {
        return None;
    }
    let mut template = Template::new(from, packet.src);
    if let Some(port) = routed {
        template.eth_dst = world::mac(port);
    }
    let quoted = frame.get(usize::from(packet.l3)..usize::from(packet.end))?;
    let quoted = quoted.get(..quoted.len().min(usize::from(keep) * 6))?;
    let kinds = if from.is_v4() {
        [3, 11, 12, 5]
    } else {
        [1, 2, 3, 4]
    };
    Some(template.icmp(kinds[usize::from(kind) % 4], kind >> 4, [0; 4], quoted))
}

/// A part of what a frame carries.
fn fragment_of(frame: &[u8], id: u8, begin: u8, length: u8, more: bool) -> Option<Vec<u8>> {
    let packet = subject(frame)?;
    if packet.fragment.is_some() {
        return None;
    }
    let payload = frame.get(usize::from(packet.l4)..usize::from(packet.end))?;
    let begin = usize::from(begin % 32) * 8;
    let end = (begin + usize::from(length)).min(payload.len().max(begin + 8));
    let mut bytes = payload.to_vec();
    bytes.resize(end.max(bytes.len()), 0x33);
    let mut template = Template::new(packet.src, packet.dst);
    template.eth_dst = *frame.first_chunk()?;
    template.eth_src = *frame.get(6..)?.first_chunk()?;
    template.fragment = Some((u32::from(id % 4), begin as u16, more));
    Some(template.ip(packet.protocol, bytes.get(begin..end)?))
}
