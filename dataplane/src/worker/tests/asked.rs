//! Packets that the kernel of a node asks about, with a model of that kernel: its connection tracking is what each test says,
//! its cache is the one that workers write.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::{restart::left_by, *};
use crate::{
    classify::Effect,
    flow::{RateLimit, state::State},
    node::{
        NodeConfig,
        ask::{self, AskHeader, Nonce, Tracking, Tuple, VERSION, flag},
        cache::{CacheHash, CacheIndex, FlowCache, action},
        epochs::{SlotSet, slot_of_end},
        owners::AddressOwners,
        queues::AskQueues,
        renewal::end_decisions,
    },
    wire::{FlowKey, build::Template, checksum},
};
use zerocopy::{FromBytes, IntoBytes};

pub(super) const ASK: PortId = PortId(0);
pub(super) const NONCE: Nonce = Nonce([0x1234_5678, 0x9abc_def0]);
const VETH: u32 = 17;
/// Where pods reach the web pod, and the node's address on their bridge.
const VIP: [&str; 2] = ["10.96.0.10", "fd96::10"];
const BRIDGE: [&str; 2] = ["10.244.1.1", "fd44::1"];
const BOTH: u8 = flag::SRC_LOCAL | flag::DST_LOCAL;

/// A connection as connection tracking has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) protocol: u8,
    pub(super) original: Tuple,
    pub(super) reply: Tuple,
    /// Which ends are pods of this node.
    pub(super) local: u8,
    pub(super) zone: u16,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The kernel let it through.
    Passed,
    /// The kernel dropped it.
    Denied,
    /// A worker was asked, and let it through.
    Answered,
    /// A worker was asked, and dropped it.
    Dropped(DropReason),
}
use Outcome::{Answered, Denied, Dropped, Passed};

fn at(who: [&str; 2], family: usize) -> Addr {
    addr(who[family])
}

impl Connection {
    /// Without translation.
    pub(super) fn direct(protocol: u8, src: (Addr, u16), dst: (Addr, u16)) -> Self {
        let original = Tuple::new(src, dst);
        Self {
            protocol,
            original,
            reply: original.reversed(),
            local: BOTH,
            zone: 0,
        }
    }

    /// From a client's port to port 80 of the web pod by its frontend's, or directly.
    fn web(family: usize, port: u16, frontend: Option<[&str; 2]>) -> Self {
        let (client, web) = (at(CLIENT, family), at(WEB, family));
        let mut connection = Self::direct(6, (client, port), (web, 80));
        if let Some(frontend) = frontend {
            connection.original = Tuple::new((client, port), (at(frontend, family), 8080));
        }
        connection
    }

    pub(super) fn local(self, local: u8) -> Self {
        Self { local, ..self }
    }

    fn tuple(&self, reply: bool) -> Tuple {
        if reply { self.reply } else { self.original }
    }

    /// Addresses and ports of a packet as it leaves: after translation.
    fn as_it_leaves(&self, reply: bool) -> Tuple {
        self.tuple(!reply).reversed()
    }

    fn template(&self, reply: bool) -> Template {
        let tuple = self.as_it_leaves(reply);
        Template::new(Addr::v6(tuple.src), Addr::v6(tuple.dst))
    }

    fn tcp(&self, reply: bool, flags: u8) -> Vec<u8> {
        let tuple = self.as_it_leaves(reply);
        self.template(reply)
            .tcp(tuple.src_port.get(), tuple.dst_port.get(), flags, b"")
    }

    fn udp(&self, reply: bool) -> Vec<u8> {
        let tuple = self.as_it_leaves(reply);
        self.template(reply)
            .udp(tuple.src_port.get(), tuple.dst_port.get(), b"hi")
    }

    pub(super) fn hash(&self) -> CacheHash {
        let mut hasher = DefaultHasher::new();
        (self.zone, self.protocol, self.original.as_bytes()).hash(&mut hasher);
        let hash = hasher.finish();
        CacheHash {
            signature: hash as u32 | 1,
            buckets: [(hash >> 32) as u32 % BUCKETS, (hash >> 48) as u32 % BUCKETS],
        }
    }

    pub(super) fn header(&self, tracking: Tracking, frame: &[u8]) -> AskHeader {
        let hash = self.hash();
        let mut ethertype = zerocopy::network_endian::U16::ZERO;
        ethertype.as_mut_bytes().copy_from_slice(&frame[12..14]);
        AskHeader {
            out_ifindex: VETH,
            nonce: NONCE,
            ethertype,
            conntrack: tracking.number(),
            flags: self.local | flag::CACHEABLE,
            in_ifindex: 3,
            signature: hash.signature,
            buckets: hash.buckets,
            zone: self.zone,
            protocol: self.protocol,
            version: VERSION,
            original: self.original,
            reply: self.reply,
            token: 0,
            queue: 0,
            ticket: 0,
        }
    }
}

pub(super) fn ask_port(id: PortId) -> Port {
    port(id, PortKind::Ask, Side::Any)
}

const BUCKETS: u32 = 256;

/// As the programs see it.
fn is_sctp_init(frame: &[u8]) -> bool {
    match crate::wire::parse(frame) {
        crate::wire::Parsed::Subject(packet) => {
            matches!(packet.transport, crate::wire::Transport::Sctp { chunk: 1, .. })
        }
        _ => false,
    }
}

/// A node: its workers, and as much of its kernel as they see.
pub(super) struct Node {
    pub(super) bed: Bed,
    pub(super) cache: Arc<FlowCache>,
    owners: Arc<AddressOwners>,
    queues: Arc<AskQueues>,
    /// Packets that the kernel dropped or let through without asking.
    by_cache: u64,
}

impl Node {
    fn new() -> Self {
        Self::with(DataplaneConfig::default())
    }

    fn audit() -> Self {
        Self::with(DataplaneConfig {
            mode: Mode::Audit,
            ..DataplaneConfig::default()
        })
    }

    fn with(config: DataplaneConfig) -> Self {
        let mut node = Self::blank(config, 4096);
        node.bed.plane.snapshots.publish(World::new(1).snapshot());
        node
    }

    pub(super) fn blank(config: DataplaneConfig, entries: usize) -> Self {
        let cache = Arc::new(FlowCache::private(BUCKETS as usize).unwrap());
        let memory = FlowMemory::private(entries, 7).unwrap();
        Self::over(config, memory, cache, Nanos::from_secs(1000))
    }

    fn over(config: DataplaneConfig, memory: FlowMemory, cache: Arc<FlowCache>, now: Nanos) -> Self {
        let owners = Arc::new(AddressOwners::default());
        let queues = Arc::new(AskQueues::private(2));
        let config = DataplaneConfig {
            node: Some(NodeConfig {
                owners: Arc::clone(&owners),
                nonce: NONCE,
                cache: Arc::clone(&cache),
                queues: Arc::clone(&queues),
            }),
            ..config
        };
        let mut bed = Bed::over(config, memory, now);
        let mut builder = ForwardingBuilder::new();
        builder.port(ask_port(ASK));
        bed.plane.forwarding.publish(builder.build());
        Self {
            bed,
            cache,
            owners,
            queues,
            by_cache: 0,
        }
    }

    /// Publishes as the appliance does: when every worker has adopted the snapshot, what changed is bumped: the web pod.
    /// (Snapshots that are not made by one builder have nothing in common that could be compared.)
    fn publish(&mut self, older: World, world: World) {
        let web = at(WEB, 0);
        let mut changed = SlotSet::empty();
        changed.insert(slot_of_end(&older.snapshot().identify(web), web));
        self.bed.publish(world);
        self.bed.run();
        self.cache.bump(&changed);
    }

    pub(super) fn cached(&self, connection: &Connection) -> Option<(CacheIndex, u8)> {
        let key = (connection.zone, connection.protocol);
        let (hash, now) = (connection.hash(), self.bed.now);
        let found = self
            .cache
            .find(hash, key, &connection.original, &connection.reply, now);
        found.map(|(index, entry)| (index, entry.action))
    }

    /// A packet is about to leave: the kernel looks into the cache, and asks if it finds nothing.
    fn exit(&mut self, connection: &Connection, tracking: Tracking, frame: &[u8]) -> Outcome {
        self.exit_by(0, connection, tracking, frame)
    }

    /// The same, by a queue of this worker.
    pub(super) fn exit_by(
        &mut self,
        worker: usize,
        connection: &Connection,
        tracking: Tracking,
        frame: &[u8],
    ) -> Outcome {
        // That one end may begin associations says nothing about the other.
        let may_begin = tracking == Tracking::Tracked(Original) || !is_sctp_init(frame);
        match self.cached(connection) {
            Some((_, action::DENY)) => {
                self.by_cache += 1;
                Denied
            }
            Some((index, _)) if may_begin => {
                let direction = usize::from(tracking == Tracking::Tracked(Reply));
                let tcp = crate::wire::parse(frame);
                let flags = match tcp {
                    crate::wire::Parsed::Subject(packet) => match packet.transport {
                        crate::wire::Transport::Tcp { flags, .. } => flags.0,
                        _ => 0,
                    },
                    _ => 0,
                };
                let bytes = frame.len() as u64 - 14;
                self.cache.count(index, direction, bytes, flags, self.bed.now);
                self.by_cache += 1;
                Passed
            }
            _ => self.ask(worker, &connection.header(tracking, frame), frame),
        }
    }

    /// Asks a worker, and checks the answer.
    pub(super) fn ask(&mut self, worker: usize, header: &AskHeader, frame: &[u8]) -> Outcome {
        let asked = [header.as_bytes(), frame].concat();
        let before: Vec<u64> = DropReason::ALL
            .iter()
            .map(|reason| self.bed.stats.drops(*reason))
            .collect();
        let sent = self.bed.on(worker, ASK, &asked);
        let Some((port, answer)) = sent.first() else {
            let grown = |(reason, before): (&DropReason, &u64)| {
                (self.bed.stats.drops(*reason) > *before).then_some(*reason)
            };
            return Dropped(DropReason::ALL.iter().zip(&before).find_map(grown).unwrap());
        };
        assert_eq!((sent.len(), *port), (1, ASK));
        assert_eq!((&answer[..14], &answer[30..]), (&frame[..14], &frame[14..]));
        let metadata = ask::AnswerMetadata::read_from_bytes(&answer[14..30]).unwrap();
        assert_eq!((metadata.out_ifindex, metadata.nonce), (VETH, NONCE));
        assert_eq!(metadata.flags != 0, header.flags & flag::NO_LINK != 0);
        Answered
    }

    fn tcp(&mut self, connection: &Connection, reply: bool, flags: u8) -> Outcome {
        let direction = if reply { Reply } else { Original };
        self.exit(
            connection,
            Tracking::Tracked(direction),
            &connection.tcp(reply, flags),
        )
    }

    fn udp(&mut self, connection: &Connection, reply: bool) -> Outcome {
        let direction = if reply { Reply } else { Original };
        self.exit(connection, Tracking::Tracked(direction), &connection.udp(reply))
    }

    fn flow(&mut self) -> FlowRecord {
        let flows = self.bed.flows();
        assert_eq!(flows.len(), 1, "{flows:?}");
        flows[0]
    }
}

use crate::flow::state::FlowDirection::{Original, Reply};

fn key(src: (Addr, u16), dst: (Addr, u16), protocol: u8) -> FlowKey {
    FlowKey {
        src: src.0,
        dst: dst.0,
        zone: 0,
        vlan: 0,
        src_port: src.1,
        dst_port: dst.1,
        protocol,
    }
}

#[test]
fn a_connection_asks_once() {
    for family in [0, 1] {
        let mut node = Node::new();
        let web = Connection::web(family, 40_000, None);
        assert_eq!(node.tcp(&web, false, SYN), Answered);
        assert_eq!(node.tcp(&web, true, SYN_ACK), Passed);
        for _ in 0..3 {
            assert_eq!(node.tcp(&web, false, ACK), Passed);
            assert_eq!(node.tcp(&web, true, ACK), Passed);
        }
        let flow = node.flow();
        assert_eq!(
            flow.key,
            key((at(CLIENT, family), 40_000), (at(WEB, family), 80), 6)
        );
        assert_eq!(
            (flow.state, flow.oriented, flow.frontend),
            (State::TcpEstablished, true, None)
        );
        assert_eq!(flow.packets, [4, 4]);
        let bytes = if family == 0 { 40 } else { 60 };
        assert_eq!(flow.bytes, [4 * bytes, 4 * bytes]);
        assert_eq!(node.bed.count(|worker| worker.received.get()), 1);
        assert_eq!(node.bed.count(|worker| worker.flow_misses.get()), 1);
    }
}

/// Judged is the pod that was chosen, by its own port; shown is the frontend as well.
#[test]
fn a_translated_destination_is_judged_where_it_leads() {
    for family in [0, 1] {
        let mut node = Node::new();
        let web = Connection::web(family, 40_000, Some(VIP));
        assert_eq!(node.tcp(&web, false, SYN), Answered);
        assert_eq!(node.tcp(&web, true, SYN_ACK), Passed);
        let flow = node.flow();
        assert_eq!(
            flow.key,
            key((at(CLIENT, family), 40_000), (at(WEB, family), 80), 6)
        );
        assert_eq!(flow.frontend, Some((at(VIP, family), 8080)));
        // The same frontend, another backend: connection tracking's answer differs, so the entry does not hold.
        let mut other = web;
        other.reply = Tuple::new((at(BOX, family), 80), (at(CLIENT, family), 40_000));
        assert_eq!(node.tcp(&other, false, SYN), Answered); // the box takes everything from the client
        let mut other = web;
        other.reply = Tuple::new((at(WEB, family), 81), (at(CLIENT, family), 40_000));
        assert_eq!(node.tcp(&other, false, SYN), Dropped(DropReason::PolicyIngress));
        assert_eq!(node.tcp(&other, false, SYN), Denied);
    }
}

#[test]
fn a_masqueraded_source_is_judged_as_the_pod() {
    for family in [0, 1] {
        let mut node = Node::new();
        // To the pod by a frontend, with the bridge's address as source.
        let mut web = Connection::web(family, 40_000, Some(VIP));
        web.reply = Tuple::new((at(WEB, family), 80), (at(BRIDGE, family), 61_000));
        assert_eq!(node.tcp(&web, false, SYN), Answered);
        assert_eq!(node.tcp(&web, true, SYN_ACK), Passed);
        assert_eq!(
            node.flow().key,
            key((at(CLIENT, family), 40_000), (at(WEB, family), 80), 6)
        );
        // The box may not go out, whatever its packets say by then.
        let mut out = Connection::direct(17, (at(BOX, family), 5000), (at(OUTSIDER, family), 53));
        out.reply = Tuple::new((at(OUTSIDER, family), 53), (at(BRIDGE, family), 62_000));
        let out = out.local(flag::SRC_LOCAL);
        assert_eq!(node.udp(&out, false), Dropped(DropReason::PolicyEgress));
        assert_eq!(node.udp(&out, false), Denied);
    }
}

#[test]
fn a_pod_reaches_itself_through_a_service() {
    for family in [0, 1] {
        let mut node = Node::new();
        // The box may neither send nor be sent anything but what the client sends.
        let (me, bridge) = (at(BOX, family), at(BRIDGE, family));
        let mut hairpin = Connection::direct(6, (me, 40_000), (at(VIP, family), 80));
        hairpin.reply = Tuple::new((me, 8080), (bridge, 61_000));
        assert_eq!(node.tcp(&hairpin, false, SYN), Answered);
        assert_eq!(node.tcp(&hairpin, true, SYN_ACK), Passed);
        assert_eq!(node.flow().key, key((me, 40_000), (me, 8080), 6));
        // Without translation of the source, port to port.
        let mut same = Connection::direct(17, (me, 53), (at(VIP, family), 53));
        same.reply = Tuple::new((me, 53), (me, 53));
        assert_eq!(node.udp(&same, false), Answered);
        assert_eq!(node.udp(&same, true), Passed);
    }
}

/// Each node judges its own pods.
#[test]
fn only_local_ends_are_judged() {
    for family in [0, 1] {
        let mut node = Node::new();
        // To the web pod's closed port: another node's business if the pod is there.
        let closed = Connection::direct(6, (at(CLIENT, family), 40_000), (at(WEB, family), 81));
        assert_eq!(
            node.tcp(&closed.local(flag::DST_LOCAL), false, SYN),
            Dropped(DropReason::PolicyIngress)
        );
        node.bed.wait(Nanos::from_secs(2));
        assert_eq!(node.tcp(&closed.local(flag::SRC_LOCAL), false, SYN), Answered);
        // The box's egress, likewise.
        let from_box = Connection::direct(17, (at(BOX, family), 5000), (at(OUTSIDER, family), 53));
        assert_eq!(node.udp(&from_box.local(flag::DST_LOCAL), false), Answered);
        // Which end comes to this node later is judged then.
        node.cache.bump(&SlotSet::all());
        assert_eq!(node.udp(&from_box, false), Dropped(DropReason::PolicyEgress));
        // Where none is said to be local, both are judged.
        let from_box = Connection::direct(17, (at(BOX, family), 5001), (at(OUTSIDER, family), 53));
        assert_eq!(
            node.udp(&from_box.local(0), false),
            Dropped(DropReason::PolicyEgress)
        );
        // What has no owner is denied.
        let unowned = Connection::direct(17, (at(CLIENT, family), 5002), (at(UNOWNED, family), 53));
        assert_eq!(
            node.udp(&unowned.local(flag::SRC_LOCAL), false),
            Dropped(DropReason::UnknownEndpoint)
        );
    }
}

#[test]
fn an_answer_is_judged_as_what_it_answers() {
    for family in [0, 1] {
        let mut node = Node::new();
        let web = Connection::web(family, 40_000, Some(VIP));
        assert_eq!(node.tcp(&web, true, ACK), Answered);
        assert_eq!(node.tcp(&web, false, ACK), Passed);
        let flow = node.flow();
        assert_eq!(
            flow.key,
            key((at(CLIENT, family), 40_000), (at(WEB, family), 80), 6)
        );
        assert_eq!(
            (flow.state, flow.oriented, flow.packets),
            (State::TcpEstablished, true, [1, 1])
        );
        // The web pod may say anything to the client; that the client began is connection tracking's word.
        let closed = Connection::direct(6, (at(CLIENT, family), 40_001), (at(WEB, family), 81));
        assert_eq!(node.tcp(&closed, true, ACK), Dropped(DropReason::PolicyIngress));
        assert_eq!(node.tcp(&closed, false, SYN), Denied);
        let began = Connection::direct(6, (at(WEB, family), 81), (at(CLIENT, family), 40_001));
        assert_eq!(node.tcp(&began, false, ACK), Answered);
    }
}

/// Whatever the table says: who began is connection tracking's word.
#[test]
fn a_flow_that_began_at_the_other_end_is_another_one() {
    let mut node = Node::new();
    let out = Connection::direct(6, (at(WEB, 0), 81), (at(CLIENT, 0), 40_001));
    assert_eq!(node.tcp(&out, false, SYN), Answered);
    let back = Connection::direct(6, (at(CLIENT, 0), 40_001), (at(WEB, 0), 81));
    assert_eq!(node.tcp(&back, false, ACK), Dropped(DropReason::PolicyIngress));
    assert_eq!(node.tcp(&out, true, ACK), Passed);
}

#[test]
fn a_change_cuts_what_it_denies_and_nothing_else() {
    for family in [0, 1] {
        let mut node = Node::new();
        let web = Connection::web(family, 40_000, Some(VIP));
        let other = Connection::direct(17, (at(CLIENT, family), 40_000), (at(OUTSIDER, family), 53));
        assert_eq!(node.tcp(&web, false, SYN), Answered);
        assert_eq!(node.udp(&other, false), Answered);
        let (allowing, denying) = (
            World::new(1),
            World {
                web_allows: false,
                web_epoch: 21,
                ..World::new(2)
            },
        );
        node.publish(allowing, denying);
        assert_eq!(node.udp(&other, false), Passed);
        assert_eq!(node.tcp(&web, false, ACK), Dropped(DropReason::PolicyIngress));
        assert_eq!(node.tcp(&web, false, ACK), Denied);
        assert_eq!(node.tcp(&web, true, ACK), Denied);
        assert_eq!(node.bed.count(|worker| worker.flows.revoked.get()), 1);
        assert_eq!(node.bed.flows().len(), 1);
        // Allowed again: the denial ends with the epoch, and what was cut begins anew.
        let again = World {
            web_epoch: 22,
            ..World::new(3)
        };
        node.publish(denying, again);
        assert_eq!(node.tcp(&web, false, ACK), Answered);
        assert_eq!(node.tcp(&web, true, ACK), Passed);
        // What stays allowed asks once, and goes on under its name.
        let before = node.bed.flows();
        let same = World {
            web_epoch: 23,
            ..World::new(4)
        };
        node.publish(again, same);
        assert_eq!(node.tcp(&web, true, ACK), Answered);
        assert_eq!(node.tcp(&web, true, ACK), Passed);
        let names = |flows: Vec<FlowRecord>| flows.into_iter().map(|flow| flow.id).collect::<Vec<_>>();
        assert_eq!(names(node.bed.flows()), names(before));
        assert_eq!(node.bed.count(|worker| worker.rejudged.get()), 1);
    }
}

/// Connection tracking knows addresses, and outlives pods.
#[test]
fn what_answers_an_earlier_pod_is_no_answer_to_the_pod_that_has_its_address() {
    for family in [0, 1] {
        let mut node = Node::new();
        let (before, after) = (
            World::new(1),
            World {
                web_epoch: 1 << 40,
                ..World::new(2)
            },
        );
        let web = at(WEB, family);
        node.owners.note(&before.snapshot(), [web]);
        let early = Connection::direct(17, (web, 40_000), (at(OUTSIDER, family), 53));
        assert_eq!(node.udp(&early, false), Answered);
        assert_eq!(node.udp(&early, true), Passed);
        node.publish(before, after);
        // Before the adoption is noted, and after it. The denial is not remembered: see below.
        let dropped = Dropped(DropReason::PolicyIngress);
        assert_eq!(node.udp(&early, true), dropped);
        node.owners.note(&after.snapshot(), []);
        assert_eq!(node.udp(&early, true), dropped);
        assert_eq!(node.udp(&early, true), dropped);
        // What the pod begins itself is answered, from the same ports, too.
        assert_eq!(node.udp(&early, false), Answered);
        assert_eq!(node.udp(&early, true), Passed);
        // Nor does a pod that may send nothing answer what an earlier one was asked.
        let (asked, to_box) = (at(CLIENT, family), at(BOX, family));
        let earlier = Connection::direct(17, (asked, 40_000), (to_box, 53));
        node.owners.note(&after.snapshot(), [to_box]);
        assert_eq!(node.udp(&earlier, true), Answered, "the pod that was asked");
        let another = World {
            generation: 3,
            box_epoch: 1 << 40,
            ..after
        };
        node.owners.note(&another.snapshot(), []);
        let later = Connection::direct(17, (asked, 40_001), (to_box, 53));
        assert_eq!(node.udp(&later, true), Dropped(DropReason::PolicyEgress));
        // An end that has its address since before is told what it asked for.
        let known = Connection::direct(17, (at(CLIENT, family), 40_000), (at(OUTSIDER, family), 53));
        assert_eq!(node.udp(&known, true), Answered);
    }
}

#[test]
fn a_denial_is_sampled_with_the_true_pair() {
    let mut node = Node::new();
    let mut closed = Connection::web(0, 40_000, Some(VIP));
    closed.reply = Tuple::new((at(WEB, 0), 81), (at(BRIDGE, 0), 61_000));
    assert_eq!(node.tcp(&closed, false, SYN), Dropped(DropReason::PolicyIngress));
    let sample = node.bed.stats.next_sample().unwrap();
    assert_eq!(
        sample.key,
        Some(key((at(CLIENT, 0), 40_000), (at(WEB, 0), 81), 6))
    );
    assert_eq!(
        sample.ingress.map(|verdict| verdict.effect),
        Some(Effect::Isolated)
    );
    // The kernel drops the next ones for a second.
    assert_eq!(node.tcp(&closed, false, SYN), Denied);
    node.bed.wait(Nanos::from_secs(1));
    assert_eq!(node.tcp(&closed, false, SYN), Dropped(DropReason::PolicyIngress));
}

#[test]
fn audit_counts_every_packet_that_enforcement_would_drop() {
    let mut node = Node::audit();
    let closed = Connection::direct(6, (at(CLIENT, 0), 40_000), (at(WEB, 0), 81));
    assert_eq!(node.tcp(&closed, false, SYN), Answered);
    assert_eq!(node.tcp(&closed, true, SYN_ACK), Passed);
    assert_eq!(node.tcp(&closed, false, ACK), Passed);
    let audited = |node: &Node| {
        node.bed
            .count(|worker| worker.audited.get(DropReason::PolicyIngress))
    };
    let flow = node.flow();
    assert_eq!(
        (flow.would_drop, flow.packets),
        (Some(DropReason::PolicyIngress), [2, 1])
    );
    node.bed.wait(crate::worker::GAUGE_INTERVAL);
    node.bed.run();
    assert_eq!(audited(&node), 3);
    // What is counted when the flow ends is counted, too.
    assert_eq!(node.tcp(&closed, true, ACK), Passed);
    node.cache.bump(&SlotSet::all());
    assert_eq!(node.tcp(&closed, false, ACK), Answered);
    node.bed.wait(Nanos::from_secs(8 * 3600));
    assert_eq!(node.tcp(&closed, false, ACK), Passed);
    node.bed.wait(Nanos::from_secs(8 * 3600));
    for _ in 0..200 {
        node.bed.wait(Nanos::from_secs(1));
        node.bed.workers[0].run_once(node.bed.now);
    }
    assert_eq!(node.bed.flows(), []);
    assert_eq!(audited(&node), 6);
    assert_eq!(node.cache.used(), 0);
}

#[test]
fn without_a_snapshot_nothing_passes_and_nothing_is_cached() {
    let mut node = Node::blank(DataplaneConfig::default(), 4096);
    let web = Connection::web(0, 40_000, None);
    for _ in 0..2 {
        assert_eq!(node.tcp(&web, false, SYN), Dropped(DropReason::NoSnapshot));
    }
    assert_eq!(node.cache.used(), 0);
    node.bed.publish(World::new(1));
    assert_eq!(node.tcp(&web, false, SYN), Answered);
}

fn icmp_error(connection: &Connection, reply: bool, from: Addr, to: Addr) -> Vec<u8> {
    let quoted = connection.tcp(reply, ACK);
    unreachable(from, to, &quoted[14..])
}

/// That a host cannot be reached, quoting a packet.
fn unreachable(from: Addr, to: Addr, quoted: &[u8]) -> Vec<u8> {
    let kind = if from.is_v4() { 3 } else { 1 };
    Template::new(from, to).icmp(kind, 1, [0; 4], quoted)
}

/// A UDP datagram in two pieces.
fn fragments(connection: &Connection) -> [Vec<u8>; 2] {
    let tuple = connection.original;
    let l4 = [
        tuple.src_port.as_bytes(),
        tuple.dst_port.as_bytes(),
        &[0x03, 0xf0, 0, 0],
        &[7; 1000],
    ]
    .concat();
    [(0, 504, true), (504, 1008, false)].map(|(from, to, more)| {
        let mut template = connection.template(false);
        template.fragment = Some((9, from as u16, more));
        template.ip(17, &l4[from..to])
    })
}

#[test]
fn errors_pass_for_allowed_flows_alone() {
    let mut node = Node::new();
    let web = Connection::web(0, 40_000, Some(VIP));
    let router = addr("198.51.100.1");
    let related = |reply| Tracking::Related(if reply { Reply } else { Original });
    let to_client = icmp_error(&web, false, router, at(CLIENT, 0));
    let header = |tracking, frame: &[u8]| AskHeader {
        flags: BOTH,
        ..web.header(tracking, frame)
    };
    let asked = header(related(true), &to_client);
    assert_eq!(
        node.ask(0, &asked, &to_client),
        Dropped(DropReason::IcmpUnrelated)
    );
    assert_eq!(node.tcp(&web, false, SYN), Answered);
    assert_eq!(node.ask(0, &asked, &to_client), Answered);
    assert_eq!(node.bed.count(|worker| worker.icmp_related.get()), 1);
    // From an end of the flow, by any of its addresses; from another pod not.
    for (from, passes) in [
        (VIP, true),
        (WEB, true),
        (BOX, false),
        (OUTSIDER, true),
        (UNOWNED, false),
        (NODE, true),
    ] {
        let frame = icmp_error(&web, false, at(from, 0), at(CLIENT, 0));
        let outcome = node.ask(0, &header(related(true), &frame), &frame);
        assert_eq!(outcome == Answered, passes, "{from:?}: {outcome:?}");
    }
    // About an answer, too, and not more of them than a flow's errors may be.
    let to_web = icmp_error(&web, true, at(CLIENT, 0), at(WEB, 0));
    let outcomes: Vec<_> = (0..20)
        .map(|_| node.ask(0, &header(related(false), &to_web), &to_web))
        .collect();
    assert_eq!(outcomes[0], Answered);
    assert_eq!(outcomes[19], Dropped(DropReason::IcmpRateLimited));
    // No longer than a router may send.
    let mut long = unreachable(
        router,
        at(CLIENT, 0),
        &[web.tcp(false, ACK)[14..].to_vec(), vec![0; 600]].concat(),
    );
    assert_eq!(
        node.ask(0, &header(related(true), &long), &long),
        Dropped(DropReason::IcmpTooLong)
    );
    long.truncate(100);
    assert_eq!(
        node.ask(0, &header(related(true), &long), &long),
        Dropped(DropReason::Truncated)
    );
}

#[test]
fn echo_is_one_flow_whatever_its_identifier_becomes() {
    for family in [0, 1] {
        let mut node = Node::new();
        let (protocol, request, answer) = if family == 0 {
            (1, 8_u16, 0_u16)
        } else {
            (58, 128, 129)
        };
        let (client, target) = (at(CLIENT, family), at(BOX, family));
        let echo = Connection {
            protocol,
            original: Tuple::new((client, 77), (target, request << 8)),
            reply: Tuple::new((target, 991), (client, answer << 8)),
            local: BOTH,
            zone: 0,
        };
        let asked = Template::new(client, target).echo(991, true);
        let answered = Template::new(target, client).echo(77, false);
        assert_eq!(node.exit(&echo, Tracking::Tracked(Original), &asked), Answered);
        assert_eq!(node.exit(&echo, Tracking::Tracked(Reply), &answered), Passed);
        let flow = node.flow();
        assert_eq!(flow.key, key((client, 77), (target, 77), protocol));
        assert_eq!(flow.state, State::IcmpAnswered);
        // The box may not ask anybody; an answer first is judged as the question.
        let from_box = Connection {
            original: Tuple::new((target, 78), (client, request << 8)),
            reply: Tuple::new((client, 78), (target, answer << 8)),
            ..echo
        };
        let answered = Template::new(client, target).echo(78, false);
        assert_eq!(
            node.exit(&from_box, Tracking::Tracked(Reply), &answered),
            Dropped(DropReason::PolicyEgress)
        );
    }
}

/// Connection tracking knows the ports of every fragment, and the kernel the tuple: they are judged as the flow.
#[test]
fn tracked_fragments_are_judged_by_their_connection() {
    for family in [0, 1] {
        let mut node = Node::new();
        let dns = Connection::direct(17, (at(CLIENT, family), 40_000), (at(WEB, family), 53));
        let closed = Connection::direct(17, (at(CLIENT, family), 40_000), (at(WEB, family), 54));
        for (connection, outcome) in [(dns, Answered), (closed, Dropped(DropReason::PolicyIngress))] {
            let pieces = fragments(&connection);
            // In the wrong order, and each for itself.
            for piece in pieces.iter().rev() {
                let header = AskHeader {
                    flags: BOTH,
                    ..connection.header(Tracking::Tracked(Original), piece)
                };
                assert_eq!(node.ask(0, &header, piece), outcome);
            }
        }
        assert_eq!(node.flow().packets, [2, 0]);
        assert_eq!(node.cache.used(), 0);
    }
}

#[test]
fn untracked_fragments_follow_their_first() {
    for family in [0, 1] {
        let mut node = Node::new();
        let dns = Connection::direct(17, (at(CLIENT, family), 40_000), (at(WEB, family), 53));
        let pieces = fragments(&dns);
        let header = |piece: &[u8]| AskHeader {
            flags: BOTH | flag::CACHEABLE,
            ..dns.header(Tracking::Untracked, piece)
        };
        assert_eq!(
            node.ask(0, &header(&pieces[1]), &pieces[1]),
            Dropped(DropReason::FragmentUnknown)
        );
        assert_eq!(node.ask(0, &header(&pieces[0]), &pieces[0]), Answered);
        assert_eq!(node.ask(0, &header(&pieces[1]), &pieces[1]), Answered);
        // A fragment's decision is not cached even if the kernel says so.
        assert_eq!(node.cache.used(), 0);
    }
}

/// Without connection tracking each direction has a tuple of its own, and the table knows which is the answer.
#[test]
fn an_untracked_flow_has_two_tuples() {
    for family in [0, 1] {
        let mut node = Node::new();
        let (client, web) = (at(CLIENT, family), at(WEB, family));
        let there = Connection::direct(17, (client, 40_000), (web, 53));
        let back = Connection::direct(17, (web, 53), (client, 40_000));
        for (connection, outcome) in [
            (there, Answered),
            (back, Answered),
            (there, Passed),
            (back, Passed),
        ] {
            let frame = connection.udp(false);
            assert_eq!(node.exit(&connection, Tracking::Untracked, &frame), outcome);
        }
        let flow = node.flow();
        assert_eq!(flow.key, key((client, 40_000), (web, 53), 17));
        assert_eq!((flow.packets, flow.state), ([2, 2], State::UdpEstablished));
        assert_eq!(node.cache.used(), 2);
        // Both go with the flow.
        node.bed.wait(Nanos::from_secs(200));
        node.bed.flows();
        for _ in 0..200 {
            node.bed.wait(Nanos::from_secs(1));
            node.bed.workers[0].run_once(node.bed.now);
        }
        assert_eq!((node.cache.used(), node.bed.flows().len()), (0, 0));
        // The box's answers answer no request.
        let from_box = Connection::direct(17, (at(BOX, family), 53), (client, 40_000));
        let frame = from_box.udp(false);
        assert_eq!(
            node.exit(&from_box, Tracking::Untracked, &frame),
            Dropped(DropReason::PolicyEgress)
        );
    }
}

#[test]
fn zones_of_connection_tracking_are_kept_apart() {
    let mut node = Node::new();
    let one = Connection::web(0, 40_000, None);
    let other = Connection { zone: 7, ..one };
    assert_eq!(node.tcp(&one, false, SYN), Answered);
    assert_eq!(node.tcp(&other, false, SYN), Answered);
    assert_eq!(node.tcp(&other, true, SYN_ACK), Passed);
    let packets: Vec<_> = node.bed.flows().iter().map(|flow| flow.packets).collect();
    assert!(
        packets.contains(&[1, 0]) && packets.contains(&[1, 1]),
        "{packets:?}"
    );
}

#[test]
fn forged_and_broken_headers_drop() {
    let mut node = Node::new();
    let web = Connection::web(0, 40_000, None);
    let frame = web.tcp(false, SYN);
    let good = web.header(Tracking::Tracked(Original), &frame);
    let with = |change: fn(&mut AskHeader)| {
        let mut header = good;
        change(&mut header);
        header
    };
    for (header, reason) in [
        (with(|header| header.nonce.0[0] ^= 1), DropReason::SpoofedSource),
        (with(|header| header.nonce.0[1] ^= 1), DropReason::SpoofedSource),
        (with(|header| header.version -= 1), DropReason::Malformed),
        (with(|header| header.version += 1), DropReason::Malformed),
        (with(|header| header.conntrack = 5), DropReason::Malformed),
        (with(|header| header.flags |= 0x80), DropReason::Malformed),
        (with(|header| header.signature = 0), DropReason::Malformed),
        (
            with(|header| header.ethertype = 0x86dd.into()),
            DropReason::Malformed,
        ),
        (
            with(|header| header.ethertype = 0x0806.into()),
            DropReason::Malformed,
        ),
        (
            with(|header| header.reply.src = [0xfd; 16]),
            DropReason::Malformed,
        ),
    ] {
        assert_eq!(node.ask(0, &header, &frame), Dropped(reason), "{header:?}");
    }
    // Frames without a header, of which one looks like a packet.
    node.bed.drops(ASK, &frame, DropReason::Truncated);
    let long = from_to(CLIENT[0], WEB[0]).udp(1, 53, &[0; 400]);
    node.bed.drops(ASK, &long, DropReason::SpoofedSource);
    assert_eq!(node.cache.used(), 0);
    // Buckets that the cache does not have: nothing is cached, the answer is the same.
    let nowhere = AskHeader {
        buckets: [u32::MAX, 1],
        ..good
    };
    assert_eq!(node.ask(0, &nowhere, &frame), Answered);
    assert_eq!(node.cache.used(), 0);
    // Behind the header: neither VLAN tags nor anything but IP.
    let mut tagged = frame.clone();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    let header = AskHeader { ..good };
    assert_eq!(node.ask(0, &header, &tagged), Dropped(DropReason::Malformed));
}

/// However an ask ends, the kernel learns that it waits no longer; forged ones say nothing.
#[test]
fn the_kernel_learns_which_asks_wait_no_longer() {
    for workers in [1, 2] {
        let mut node = Node::with(DataplaneConfig {
            workers,
            ..DataplaneConfig::default()
        });
        let mut ticket = 1_u32;
        let mut ask = |node: &mut Node, src_port: u16, change: fn(&mut AskHeader)| {
            let web = Connection::web(0, src_port, None);
            let frame = web.tcp(false, SYN);
            let mut header = web.header(Tracking::Tracked(Original), &frame);
            header.queue = 1;
            header.ticket = ticket;
            change(&mut header);
            node.bed.on(0, ASK, &[header.as_bytes(), &frame].concat());
            assert_eq!(node.queues.taken(0), 0);
            ticket += 1;
            node.queues.taken(1).wrapping_sub(header.ticket)
        };
        // Some of these flows are the other worker's.
        for src_port in 40_000..40_010 {
            assert_eq!(ask(&mut node, src_port, |_| ()), 0, "{workers} workers");
        }
        // A pair that no policy allows, and a frame that cannot be read.
        let denied = |header: &mut AskHeader| header.original.src = header.original.dst;
        assert_eq!(ask(&mut node, 40_010, denied), 0);
        assert_eq!(ask(&mut node, 40_011, |header| header.protocol = 17), 0);
        let forged = |header: &mut AskHeader| header.nonce.0[0] ^= 1;
        assert_eq!(ask(&mut node, 40_012, forged), u32::MAX, "one less");
        let elsewhere = |header: &mut AskHeader| header.queue = 1 << 20;
        assert_eq!(ask(&mut node, 40_013, elsewhere), (-2_i32).cast_unsigned());
    }
}

/// Every cut of an asked frame drops, and none panics or is answered as a whole one.
#[test]
fn every_truncation_drops() {
    let mut node = Node::new();
    let web = Connection::web(1, 40_000, None);
    let frame = web.tcp(false, SYN);
    let asked = [web.header(Tracking::Tracked(Original), &frame).as_bytes(), &frame].concat();
    for length in 0..asked.len() {
        let before = node.bed.count(|worker| worker.drops.total());
        let sent = node.bed.on(0, ASK, &asked[..length]);
        assert_eq!(sent, [], "{length}");
        assert_eq!(
            node.bed.count(|worker| worker.drops.total()),
            before + 1,
            "{length}"
        );
    }
    assert_eq!(node.bed.on(0, ASK, &asked).len(), 1);
}

/// The kernel counts, the table forgets: entries leave the cache with their flows.
#[test]
fn expired_flows_leave_the_cache_and_used_ones_stay() {
    let mut node = Node::new();
    let used = Connection::direct(17, (at(CLIENT, 0), 1), (at(OUTSIDER, 0), 53));
    let idle = Connection::direct(17, (at(CLIENT, 0), 2), (at(OUTSIDER, 0), 53));
    for connection in [used, idle] {
        assert_eq!(node.udp(&connection, false), Answered);
        assert_eq!(node.udp(&connection, true), Passed);
        assert_eq!(node.udp(&connection, false), Passed);
    }
    for _ in 0..400 {
        node.bed.wait(Nanos::from_secs(1));
        if node.cached(&used).is_some() {
            assert_eq!(node.udp(&used, false), Passed);
        }
        node.bed.workers[0].run_once(node.bed.now);
    }
    assert_eq!(node.cache.used(), 1);
    let flow = node.flow();
    assert_eq!(
        (flow.key.src_port, flow.state, flow.packets),
        (1, State::UdpEstablished, [402, 1])
    );
    assert_eq!(flow.last_seen, node.bed.now);
}

/// Connections that the kernel has seen being answered are not half-open, though the worker saw one packet of each.
#[test]
fn answered_connections_do_not_give_way_as_half_open_ones() {
    let mut node = Node::blank(DataplaneConfig::default(), 4096);
    node.bed.publish(World::new(1));
    // Four times what may be half-open of one endpoint: a sixteenth of the table.
    let connections: Vec<Connection> = (0..1000)
        .map(|port| Connection::direct(6, (at(CLIENT, 0), 1000 + port), (at(OUTSIDER, 0), 80)))
        .collect();
    for connection in &connections {
        assert_eq!(node.tcp(connection, false, SYN), Answered);
        assert_eq!(node.tcp(connection, true, SYN_ACK), Passed);
        assert_eq!(node.tcp(connection, false, ACK), Passed);
        node.bed.wait(Nanos::from_millis(1));
    }
    let lost = connections
        .iter()
        .filter(|connection| node.cached(connection).is_none())
        .count();
    assert!(lost < 20, "{lost} of 1000"); // two full buckets each, now and then
    assert_eq!(node.bed.count(|worker| worker.flows.evicted.get()), 0);
    node.bed.run();
    assert!(node.bed.count(|worker| worker.flows.half_open.get()) < 250);
}

/// The kernel goes on while no worker runs; its counts and the flows' names outlive the process.
#[test]
fn a_restart_takes_flows_and_cache_over() {
    let entries = 256 * 16;
    let memory = FlowMemory::private(entries, 7).unwrap();
    let cache = Arc::new(FlowCache::private(BUCKETS as usize).unwrap());
    let config = DataplaneConfig::default();
    let mut node = Node::over(config.clone(), memory, cache, Nanos::from_secs(1000));
    node.bed.publish(World::new(5));
    let web = Connection::web(0, 40_000, Some(VIP));
    assert_eq!(node.tcp(&web, false, SYN), Answered);
    assert_eq!(node.tcp(&web, true, SYN_ACK), Passed);
    let before = node.flow();
    assert_eq!(node.tcp(&web, false, ACK), Passed);

    let now = Nanos::from_secs(1010);
    let left = || FlowMemory::open(left_by(&node.bed), entries, 99, now).unwrap();
    let (memory, elsewhere) = (left(), left());
    let mut next = Node::over(config, memory, Arc::clone(&node.cache), now);
    assert_eq!(next.tcp(&web, true, ACK), Passed);
    next.bed.publish(World::new(1));
    next.bed.run();
    end_decisions(&next.cache, &World::new(1).snapshot(), None);
    assert_eq!(next.tcp(&web, false, ACK), Answered);
    assert_eq!(next.tcp(&web, true, ACK), Passed);
    let flow = next.flow();
    assert_eq!((flow.id, flow.frontend), (before.id, Some((at(VIP, 0), 8080))));
    assert_eq!((flow.packets, flow.state), ([3, 3], State::TcpEstablished));
    assert_eq!(next.bed.count(|worker| worker.restamped.get()), 1);

    // A gateway believes no flow of which a node has judged one end.
    let mut gateway = Bed::over(DataplaneConfig::default(), elsewhere, now);
    gateway.run();
    assert_eq!(gateway.count(|worker| worker.flows.inherited.get()), 0);
}

/// Where the cache has no room, flows take turns in it; what the kernel counted of each is shown all the same.
#[test]
fn nothing_is_lost_of_a_flow_that_gives_way_in_the_cache() {
    let mut node = Node::new();
    let connections: Vec<Connection> = (0..17)
        .map(|port| Connection::direct(17, (at(CLIENT, 0), 1000 + port), (at(OUTSIDER, 0), 53)))
        .collect();
    // All of them hashed to the same bucket, which has eight places.
    let find = |node: &Node, connection: &Connection| {
        let mut hash = connection.hash();
        hash.buckets = [3; 2];
        let (original, reply) = (&connection.original, &connection.reply);
        node.cache.find(hash, (0, 17), original, reply, node.bed.now)
    };
    let mut sent = std::collections::BTreeMap::new();
    for connection in &connections {
        // Those that are there send another packet each, and none is looked at before one gives way.
        for there in &connections {
            if let Some((index, _)) = find(&node, there) {
                node.bed.wait(Nanos::from_millis(1));
                node.cache.count(index, 0, 30, 0, node.bed.now);
                *sent.entry(there.original.src_port.get()).or_insert(0) += 1;
            }
        }
        let frame = connection.udp(false);
        let header = AskHeader {
            buckets: [3; 2],
            ..connection.header(Tracking::Tracked(Original), &frame)
        };
        assert_eq!(node.ask(0, &header, &frame), Answered);
        assert!(find(&node, connection).is_some());
        *sent.entry(connection.original.src_port.get()).or_insert(0) += 1;
        node.bed.flows();
    }
    assert_eq!(node.cache.used(), 8);
    let shown = node.bed.flows().into_iter();
    let shown: std::collections::BTreeMap<u16, u64> =
        shown.map(|flow| (flow.key.src_port, flow.packets[0])).collect();
    assert_eq!(shown, sent);
}

/// A change that leaves a flow allowed does not make it ask.
#[test]
fn renewed_flows_go_on_without_a_question() {
    let mut node = Node::new();
    let web = Connection::web(0, 40_000, Some(VIP));
    assert_eq!(node.tcp(&web, false, SYN), Answered);
    let changed = World {
        web_epoch: 21,
        ..World::new(2)
    };
    node.bed.publish(changed);
    node.bed.run();
    let renewal = end_decisions(&node.cache, &changed.snapshot(), Some(&World::new(1).snapshot()));
    assert_eq!((renewal.renewed, renewal.ended), (1, 0));
    assert_eq!(node.tcp(&web, true, SYN_ACK), Passed);
    let denied = World {
        web_allows: false,
        web_epoch: 22,
        ..World::new(3)
    };
    node.bed.publish(denied);
    node.bed.run();
    let renewal = end_decisions(&node.cache, &denied.snapshot(), Some(&changed.snapshot()));
    assert_eq!((renewal.renewed, renewal.ended), (0, 1));
    assert_eq!(node.tcp(&web, true, ACK), Dropped(DropReason::PolicyIngress));
}

/// What a node with an answer for denied packets sends after one that came in from a pod's port, number 21.
fn denial_answers(
    connection: &Connection,
    tracking: Tracking,
    frame: &[u8],
    change: impl Fn(&mut AskHeader),
) -> Vec<Vec<u8>> {
    let mut node = Node::with(DataplaneConfig {
        denial_answer: DenialAnswer::Reset,
        ..DataplaneConfig::default()
    });
    let mut header = connection.header(tracking, frame);
    header.token = 21;
    change(&mut header);
    let sent = node.bed.on(0, ASK, &[header.as_bytes(), frame].concat());
    assert_eq!(node.bed.stats.drops(DropReason::PolicyIngress), 1);
    assert_eq!(node.bed.count(|w| w.denials_answered.get()), sent.len() as u64);
    sent.into_iter().map(|(_, answer)| answer).collect()
}

/// From the client by the web pod's frontend to a port of it that is closed, masqueraded as for a hairpin.
fn closed(family: usize, protocol: u8) -> Connection {
    let mut closed = Connection::web(family, 40_000, Some(VIP));
    closed.protocol = protocol;
    closed.reply = Tuple::new((at(WEB, family), 81), (at(BRIDGE, family), 61_000));
    closed
}

#[test]
fn a_pod_is_told_that_it_is_denied_by_the_ends_that_it_used() {
    for (family, number) in [(0, 6), (1, 6), (0, 17), (1, 17)] {
        let connection = closed(family, number);
        let as_sent = Template::new(at(CLIENT, family), at(VIP, family));
        let (frame, sent) = if number == 6 {
            (connection.tcp(false, SYN), as_sent.tcp(40_000, 8080, SYN, b""))
        } else {
            (connection.udp(false), as_sent.udp(40_000, 8080, b"hi"))
        };
        assert_ne!(frame, sent);
        let answers = denial_answers(&connection, Tracking::Tracked(Original), &frame, |_| ());
        let [answer] = &answers[..] else {
            panic!("{answers:x?}");
        };
        let metadata = ask::AnswerMetadata::read_from_bytes(&answer[14..30]).unwrap();
        assert_eq!(
            (metadata.out_ifindex, metadata.nonce, metadata.flags),
            (21, NONCE, ask::ANSWER_TO_POD)
        );
        assert_eq!(
            (&answer[..6], &answer[6..12], &answer[12..14]),
            (&frame[6..12], &frame[..6], &frame[12..14])
        );
        let answer = [&answer[..14], &answer[30..]].concat();
        let crate::wire::Parsed::Subject(packet) = crate::wire::parse(&answer) else {
            panic!("{answer:x?}");
        };
        assert_eq!((packet.src, packet.dst), (at(VIP, family), at(CLIENT, family)));
        let l4 = &answer[usize::from(packet.l4)..usize::from(packet.end)];
        match packet.transport {
            crate::wire::Transport::Tcp { src, dst, flags } => {
                assert_eq!((number, src, dst, flags.0), (6, 8080, 40_000, RST | ACK));
            }
            _ => {
                assert_eq!((number, &l4[..2]), (17, &[[3, 3], [1, 4]][family][..]));
                assert_eq!(
                    l4[8..],
                    sent[14..],
                    "quotes what the pod sent, checksums included"
                );
            }
        }
        let pseudo = match packet.protocol {
            1 => 0,
            other => checksum::pseudo_header(packet.src, packet.dst, other, l4.len() as u16),
        };
        assert_eq!(checksum::fold(pseudo + checksum::sum(l4)), 0xffff);
    }
}

#[test]
fn only_the_pod_that_sent_a_packet_learns_that_it_is_denied() {
    let connection = closed(0, 6);
    let frame = connection.tcp(false, SYN);
    let silent = |tracking, change: &dyn Fn(&mut AskHeader)| {
        let answers = denial_answers(&connection, tracking, &frame, change);
        assert!(answers.is_empty(), "{answers:x?}");
    };
    let original = Tracking::Tracked(Original);
    assert_eq!(denial_answers(&connection, original, &frame, |_| ()).len(), 1);
    // A sender elsewhere, this host's own stack, a packet that is not whole.
    silent(original, &|header| {
        header.flags = flag::DST_LOCAL | flag::CACHEABLE
    });
    silent(original, &|header| header.in_ifindex = 0);
    silent(original, &|header| header.flags = BOTH);
    // A reset.
    let reset = connection.tcp(false, RST);
    assert!(denial_answers(&connection, original, &reset, |_| ()).is_empty());
    // What goes the other way was sent by the other end.
    let back = connection.tcp(true, ACK);
    assert!(denial_answers(&connection, Tracking::Tracked(Reply), &back, |_| ()).is_empty());
}

#[test]
fn a_denial_that_is_remembered_is_silent_and_answers_are_limited() {
    let mut node = Node::with(DataplaneConfig {
        denial_answer: DenialAnswer::Reset,
        denials_answered: RateLimit {
            per_second: 2,
            burst: 2,
        },
        ..DataplaneConfig::default()
    });
    let mut answers = Vec::new();
    for port in 0..5_u16 {
        let mut connection = closed(0, 6);
        connection.original = Tuple::new((at(CLIENT, 0), 40_000 + port), (at(VIP, 0), 8080));
        connection.reply = Tuple::new((at(WEB, 0), 81), (at(CLIENT, 0), 40_000 + port));
        let frame = connection.tcp(false, SYN);
        let asked = [
            connection.header(Tracking::Tracked(Original), &frame).as_bytes(),
            &frame,
        ]
        .concat();
        answers.push(node.bed.on(0, ASK, &asked).len());
        assert_eq!(node.tcp(&connection, false, SYN), Denied);
    }
    assert_eq!(answers, [1, 1, 0, 0, 0]);
}

/// The pod begins, the outsider answers; then the outsider begins, on the same ports.
#[test]
fn an_association_that_the_other_end_begins_is_judged_as_such() {
    const TO_PEER: u16 = 5001;
    for (family, tracked) in [(0, false), (0, true), (1, false), (1, true)] {
        let mut node = Node::new();
        let (web, outsider) = (at(WEB, family), at(OUTSIDER, family));
        let out = Connection::direct(132, (web, TO_PEER), (outsider, TO_PEER)).local(flag::SRC_LOCAL);
        // Without connection tracking, the packet's own tuple.
        let back = Connection::direct(132, (outsider, TO_PEER), (web, TO_PEER)).local(flag::DST_LOCAL);
        let chunk = |reply: bool, chunk: u8| out.template(reply).sctp(TO_PEER, TO_PEER, chunk);
        let mut exit = |reply: bool, kind: u8| {
            let (connection, tracking) = match (tracked, reply) {
                (true, false) => (&out, Tracking::Tracked(Original)),
                (true, true) => (&out, Tracking::Tracked(Reply)),
                (false, false) => (&out, Tracking::Untracked),
                (false, true) => (&back, Tracking::Untracked),
            };
            let frame = chunk(reply, kind);
            let outcome = node.exit(connection, tracking, &frame);
            (outcome, node.cached(connection).map(|(_, action)| action))
        };
        assert_eq!(exit(false, 1).0, Answered, "INIT of the pod");
        for _ in 0..2 {
            let (outcome, _) = exit(true, 1);
            assert_eq!(
                outcome,
                Dropped(DropReason::PolicyIngress),
                "INIT of the outsider"
            );
            let (outcome, cached) = exit(true, 2);
            assert!(matches!(outcome, Answered | Passed), "INIT ACK: {outcome:?}");
            assert_eq!(cached, Some(action::ALLOW));
        }
    }
}
