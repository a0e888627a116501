//! Random streams of packets that the kernel asks about: what passes is what policy allows of the true pair, whatever was
//! cached before; the number of workers does not show; nothing is allocated.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{
    asked::{ASK, Connection, Node, Outcome},
    random::allocations,
    *,
};
use crate::{
    classify::{L4, NodeExemption},
    flow::state::FlowDirection,
    node::{
        ask::{AskHeader, LocalEnds, Tracking, Tuple, flag},
        cache::action,
        epochs::{SlotSet, slot_of_end},
        renewal::end_decisions,
    },
    wire::build::Template,
};
use zerocopy::{FromBytes, IntoBytes};

const WHO: [[&str; 2]; 6] = [CLIENT, WEB, BOX, UNOWNED, NODE, OUTSIDER];
const FRONTEND: [&str; 2] = ["10.96.0.77", "fd96::77"];
const BRIDGE: [&str; 2] = ["10.244.1.1", "fd44::1"];

/// A packet of a small world, one out of few of each kind, so that flows meet.
#[derive(Clone, Copy, Debug)]
struct AskStep {
    family: usize,
    src: usize,
    dst: usize,
    port: u16,
    kind: u8,
    flags: u8,
    reply: bool,
    untracked: bool,
    frontend: bool,
    masquerade: bool,
    wait: u16,
    publish: u8,
}

fn step() -> impl Strategy<Value = AskStep> {
    (
        (0..2usize, 0..6usize, 0..6usize, 0..3u16, 0..5u8, any::<u8>()),
        (any::<bool>(), 0..8u8, any::<bool>(), any::<bool>()),
        (any::<u16>(), any::<u8>()),
    )
        .prop_map(
            |(
                (family, src, dst, port, kind, flags),
                (reply, untracked, frontend, masquerade),
                (wait, publish),
            )| {
                AskStep {
                    family,
                    src,
                    dst,
                    port,
                    kind,
                    flags,
                    reply,
                    untracked: untracked == 0,
                    frontend,
                    masquerade,
                    wait,
                    publish,
                }
            },
        )
}

impl AskStep {
    fn ends(&self) -> [Addr; 2] {
        [self.src, self.dst].map(|who| addr(WHO[who][self.family]))
    }

    fn ports(&self) -> [u16; 2] {
        [1000 + self.port, [80, 53, 443][usize::from(self.port)]]
    }

    /// The pods `locals` are this node's.
    fn connection(&self, locals: u8) -> Connection {
        let ([src, dst], [low, high]) = (self.ends(), self.ports());
        let is_local = |who: usize| who < 3 && locals >> who & 1 != 0;
        let local = if is_local(self.src) { flag::SRC_LOCAL } else { 0 }
            | if is_local(self.dst) { flag::DST_LOCAL } else { 0 };
        let (protocol, low, high) = match self.kind {
            0 | 1 => (6, low, high),
            2 => (17, low, high),
            3 => (132, 5001, 5000),
            _ => {
                let (number, kinds) = if self.family == 0 {
                    (1, [8_u16, 0])
                } else {
                    (58, [128, 129])
                };
                let [asks, answers] = kinds.map(|kind| kind << 8);
                return Connection {
                    original: Tuple::new((src, low), (dst, asks)),
                    reply: Tuple::new((dst, low), (src, answers)),
                    ..Connection::direct(number, (src, low), (dst, asks))
                }
                .local(local);
            }
        };
        let mut connection = Connection::direct(protocol, (src, low), (dst, high)).local(local);
        if self.untracked {
            return connection;
        }
        if self.frontend {
            connection.original = Tuple::new((src, low), (addr(FRONTEND[self.family]), 7000 + self.port));
        }
        if self.masquerade {
            connection.reply = Tuple::new((dst, high), (addr(BRIDGE[self.family]), 60_000 + self.port));
        }
        connection
    }

    fn tracking(&self) -> Tracking {
        match (self.untracked, self.reply) {
            (true, _) => Tracking::Untracked,
            (_, false) => Tracking::Tracked(FlowDirection::Original),
            (_, true) => Tracking::Tracked(FlowDirection::Reply),
        }
    }

    fn frame(&self, connection: &Connection) -> Vec<u8> {
        let reply = self.reply && !self.untracked;
        let leaving = if reply {
            connection.original
        } else {
            connection.reply
        }
        .reversed();
        let template = Template::new(Addr::v6(leaving.src), Addr::v6(leaving.dst));
        let (low, high) = (leaving.src_port.get(), leaving.dst_port.get());
        let tcp = [SYN, SYN_ACK, ACK, FIN_ACK, RST, ACK, ACK, ACK];
        match self.kind {
            0 | 1 => template.tcp(low, high, tcp[usize::from(self.flags % 8)], b"x"),
            2 => template.udp(low, high, b"x"),
            3 => template.sctp(low, high, self.flags % 16),
            _ => template.echo(1000 + self.port, !reply),
        }
    }

    /// Whether the end that answers begins an association, which is judged for itself.
    fn begins_backwards(&self) -> bool {
        self.reply && self.kind == 3 && self.flags % 16 == 1
    }

    /// What the policies of the world say of a tracked connection, written out.
    fn is_allowed(&self, world: &World, locals: u8) -> bool {
        let [_, port] = self.ports();
        let backwards = self.begins_backwards();
        let (src, dst) = if backwards {
            (self.dst, self.src)
        } else {
            (self.src, self.dst)
        };
        let (tcp, udp) = (self.kind < 2, self.kind == 2);
        // The other way it is to a port of the client's.
        let sctp = self.kind == 3 && !backwards;
        let local = |who: usize| who < 3 && locals >> who & 1 != 0;
        // Where neither end is a pod of this node, both are judged.
        let neither = !local(src) && !local(dst);
        let (from, to) = (WHO[src], WHO[dst]);
        if from == to && src < 3 {
            return true;
        }
        if (from == UNOWNED || to == UNOWNED) && !world.allow_unknown {
            return false;
        }
        if from == BOX && (local(src) || neither) {
            return false;
        }
        if !(local(dst) || neither) {
            return true;
        }
        match to {
            to if to == BOX => from == CLIENT,
            to if to == WEB && from == CLIENT => {
                world.web_allows && (tcp && port == 80 || udp && port == 53 || sctp)
            }
            to if to == WEB && from == BOX => false,
            to if to == WEB => tcp && port == 443,
            _ => true,
        }
    }
}

/// What became of each packet, and how often each reason was named.
fn results(steps: &[AskStep], locals: u8, workers: usize) -> (Vec<Outcome>, Vec<u64>) {
    let config = DataplaneConfig {
        workers,
        ..DataplaneConfig::default()
    };
    let mut node = Node::blank(config, 4096);
    let mut world = World::new(1);
    node.bed.publish(world);
    let mut all = Vec::new();
    for (nth, step) in steps.iter().enumerate() {
        if step.publish < 24 {
            let older = world;
            world = World {
                web_allows: step.publish % 2 == 0,
                web_epoch: 20 + world.generation,
                generation: world.generation + 1,
                ..world
            };
            let mut changed = SlotSet::empty();
            if step.publish < 8 {
                world.allow_unknown = step.publish % 3 == 0;
                changed = SlotSet::all();
            }
            let web = addr(WEB[0]);
            changed.insert(slot_of_end(&older.snapshot().identify(web), web));
            node.bed.publish(world);
            node.bed.run();
            // Renewed, or all at once.
            match step.publish % 3 {
                0 => drop(end_decisions(
                    &node.cache,
                    &world.snapshot(),
                    Some(&older.snapshot()),
                )),
                _ => node.cache.bump(&changed),
            }
        }
        let wait = if step.wait < 300 {
            200_000
        } else {
            u64::from(step.wait) / 64
        };
        node.bed.wait(Nanos::from_millis(wait));
        let connection = step.connection(locals);
        let outcome = node.exit_by(
            nth % workers,
            &connection,
            step.tracking(),
            &step.frame(&connection),
        );
        // A denial of what the other end began holds for everything of its tuple.
        let by_other = step.begins_backwards() && outcome == Outcome::Denied;
        if !step.untracked && !by_other {
            let passes = matches!(outcome, Outcome::Passed | Outcome::Answered);
            assert_eq!(
                passes,
                step.is_allowed(&world, locals),
                "step {nth}: {step:?}: {outcome:?}"
            );
        }
        all.push(outcome);
    }
    // Whoever is let through by the cache has a flow.
    let flows: BTreeSet<u64> = node.bed.flows().iter().map(|flow| flow.id.0).collect();
    for (_, entry) in node.cache.entries_in_use() {
        assert!(
            entry.action == action::DENY || flows.contains(&entry.flow),
            "{entry:?}"
        );
    }
    let drops = DropReason::ALL
        .iter()
        .map(|reason| node.bed.stats.drops(*reason))
        .collect();
    (all, drops)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_passes_is_what_policy_allows_of_the_true_pair(
        steps in proptest::collection::vec(step(), 1..250),
        locals in 0..8u8,
    ) {
        let one = results(&steps, locals, 1);
        prop_assert_eq!(&one, &results(&steps, locals, 2));
        prop_assert_eq!(&one, &results(&steps, locals, 4));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Whatever stands in the header and behind it: a frame drops, or goes back unchanged to where the header says; and no
    /// connection passes that policy denies.
    #[test]
    fn forged_headers_are_harmless(
        steps in proptest::collection::vec(step(), 1..12),
        changes in proptest::collection::vec((0..200usize, any::<u8>(), 0..12usize), 0..24),
        cut in 0..400usize,
    ) {
        let mut node = Node::blank(DataplaneConfig::default(), 4096);
        let world = World::new(1);
        node.bed.publish(world);
        let snapshot = world.snapshot();
        for (nth, step) in steps.iter().enumerate() {
            let connection = step.connection(7);
            let frame = step.frame(&connection);
            let mut asked = [connection.header(step.tracking(), &frame).as_bytes(), &frame].concat();
            for (at, value, _) in changes.iter().filter(|change| change.2 == nth) {
                if let Some(byte) = asked.get_mut(*at) {
                    *byte = *value;
                }
            }
            asked.truncate(if nth % 3 == 0 { cut.max(1) } else { asked.len() });
            let sent = node.bed.on(0, ASK, &asked);
            let Some((_, answer)) = sent.first() else { continue };
            let (header, frame) = AskHeader::read_from_prefix(&asked).unwrap();
            prop_assert_eq!((&answer[..14], &answer[30..]), (&frame[..14], &frame[14..]));
            prop_assert_eq!(&answer[14..18], header.out_ifindex.as_bytes());
            if matches!(header.conntrack, 1 | 2) && matches!(header.protocol, 6 | 17) {
                let [src, dst] = [header.original.src, header.reply.src].map(Addr::v6);
                let [from, to] = [src, dst].map(|addr| snapshot.identify(addr));
                let l4 = L4::of(header.protocol, Some(header.reply.src_port.get()), header.original.src_port.get());
                let judgement = snapshot.judge(&from, &to, src, dst, l4, NodeExemption::Untrusted);
                let passes = LocalEnds::from_flags(header.flags).restrict(judgement).allow();
                // Where the parser has found another protocol, it is judged by that.
                let agrees = frame.get(14 + if frame[12] == 8 { 9 } else { 6 }) == Some(&header.protocol);
                prop_assert!(!agrees || passes, "{:?}", header);
            }
        }
    }
}

#[test]
fn streams_reach_every_kind_of_outcome() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for locals in 0..8 {
        let steps = proptest::collection::vec(step(), 400)
            .new_tree(&mut runner)
            .unwrap()
            .current();
        seen.extend(
            results(&steps, locals, 1)
                .0
                .iter()
                .map(|outcome| format!("{outcome:?}")),
        );
    }
    for outcome in [
        "Passed",
        "Denied",
        "Answered",
        "Dropped(PolicyIngress)",
        "Dropped(PolicyEgress)",
        "Dropped(UnknownEndpoint)",
    ] {
        assert!(seen.contains(outcome), "{outcome} in {seen:?}");
    }
}

#[test]
fn nothing_is_allocated_per_question() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let config = DataplaneConfig {
        workers: 2,
        ..DataplaneConfig::default()
    };
    let mut node = Node::blank(config, 4096);
    node.bed.publish(World::new(1));
    let mut runner = TestRunner::deterministic();
    let steps = proptest::collection::vec(step(), 3000)
        .new_tree(&mut runner)
        .unwrap()
        .current();
    let (mut spent, mut frames) = (0, 0);
    for (nth, step) in steps.iter().enumerate() {
        let connection = step.connection(7);
        let frame = step.frame(&connection);
        let asked = [connection.header(step.tracking(), &frame).as_bytes(), &frame].concat();
        assert!(node.bed.workers[nth % 2].io().inject(usize::from(ASK.0), &asked));
        if let Some((index, _)) = node.cached(&connection) {
            node.cache.count(index, 0, 60, ACK, node.bed.now);
        }
        if nth % 50 != 49 {
            continue;
        }
        node.bed.wait(Nanos::from_millis(100));
        for worker in &mut node.bed.workers {
            worker.io().reserve(512);
        }
        for worker in [0, 1, 0, 1] {
            let before = allocations();
            frames += node.bed.workers[worker].run_once(node.bed.now).frames;
            spent += allocations() - before;
        }
        for worker in &mut node.bed.workers {
            let _ = worker.io().take_sent();
        }
    }
    assert!(frames >= 3000);
    assert_eq!(spent, 0);
}
