//! What a killed process leaves behind is taken over.

use super::*;
use crate::{
    failsafe::{Failsafe, FailsafeRule, Prefix},
    flow::memory::{self, SEGMENTS},
};

const ENTRIES: usize = SEGMENTS * 16;

/// What the memory of a bed's flows holds, as it would lie in a shared mapping.
pub(super) fn left_by(bed: &Bed) -> &'static mut [u8] {
    let tables: Vec<(Vec<u32>, Vec<u8>)> = bed
        .workers
        .iter()
        .map(|worker| worker.slot.table.bytes())
        .collect();
    let image = memory::image(7, 16, &tables);
    // As words, for the alignment of a mapping.
    let words: Vec<u64> = image
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_ne_bytes(*word))
        .collect();
    zerocopy::IntoBytes::as_mut_bytes(Box::leak(words.into_boxed_slice()))
}

fn begin(workers: usize, memory: FlowMemory, now: Nanos) -> Bed {
    let config = DataplaneConfig {
        workers,
        ..DataplaneConfig::default()
    };
    let mut bed = Bed::over(config, memory, now);
    bed.plane.forwarding.publish(wire().build());
    bed
}

#[test]
fn flows_survive_a_restart_reply_first() {
    for family in [0, 1] {
        let mut bed = begin(
            2,
            FlowMemory::private(ENTRIES, 7).unwrap(),
            Nanos::from_secs(1000),
        );
        bed.publish(World::new(5));
        let (forth, back) = (
            from_to(CLIENT[family], BOX[family]),
            from_to(BOX[family], CLIENT[family]),
        );
        assert!(bed.crosses(INSIDE, &forth.tcp(1, 22, SYN, b"")));
        assert!(bed.crosses(OUTSIDE, &back.tcp(22, 1, SYN_ACK, b"")));
        assert!(bed.crosses(INSIDE, &forth.tcp(1, 22, ACK, b"")));
        let web = from_to(CLIENT[family], WEB[family]);
        assert!(bed.crosses(INSIDE, &web.udp(1, 53, b"")));

        // Another number of workers, and generations that begin anew.
        let memory = FlowMemory::open(left_by(&bed), ENTRIES, 99, Nanos::from_secs(1010)).unwrap();
        assert!(memory.is_inherited());
        let mut next = begin(3, memory, Nanos::from_secs(1010));
        next.publish(World::new(1));
        assert!(next.crosses(OUTSIDE, &back.tcp(22, 1, ACK, b"")));
        assert_eq!(next.count(|w| w.flows.inherited.get()), 2);
        assert_eq!(next.count(|w| w.restamped.get()), 1);
        // Nothing is picked up where flows were inherited.
        next.drops(OUTSIDE, &back.tcp(22, 2, ACK, b""), DropReason::PolicyEgress);

        // The policy has changed in the meantime.
        let memory = FlowMemory::open(left_by(&bed), ENTRIES, 99, Nanos::from_secs(1010)).unwrap();
        let mut next = begin(1, memory, Nanos::from_secs(1010));
        next.publish(World {
            web_allows: false,
            web_epoch: 21,
            ..World::new(5)
        });
        next.drops(INSIDE, &web.udp(1, 53, b""), DropReason::PolicyIngress);
        assert_eq!(next.count(|w| w.flows.revoked.get()), 1);

        // Its time has passed.
        let memory = FlowMemory::open(left_by(&bed), ENTRIES, 99, Nanos::from_secs(90000)).unwrap();
        let mut next = begin(1, memory, Nanos::from_secs(90000));
        next.publish(World::new(5));
        next.drops(OUTSIDE, &back.tcp(22, 1, ACK, b""), DropReason::PolicyEgress);
    }
}

/// A port's number may mean another interface after a restart.
#[test]
fn the_source_of_a_flow_is_asked_for_its_port_again_after_a_restart() {
    let sides = |inside, outside| {
        let mut builder = wire();
        builder.port(port(INSIDE, PortKind::Wire { peer: OUTSIDE }, inside));
        builder.port(port(OUTSIDE, PortKind::Wire { peer: INSIDE }, outside));
        builder.build()
    };
    for family in [0, 1] {
        let mut bed = begin(
            1,
            FlowMemory::private(ENTRIES, 7).unwrap(),
            Nanos::from_secs(1000),
        );
        bed.publish(World::new(1));
        bed.plane.forwarding.publish(sides(Side::Inside, Side::Outside));
        let forth = from_to(CLIENT[family], OUTSIDER[family]).udp(1, 2, b"");
        assert!(bed.crosses(INSIDE, &forth));

        for (inside, outside, passes) in [
            (Side::Inside, Side::Outside, true),
            (Side::Outside, Side::Inside, false),
        ] {
            let memory = FlowMemory::open(left_by(&bed), ENTRIES, 99, Nanos::from_secs(1010)).unwrap();
            let mut next = begin(1, memory, Nanos::from_secs(1010));
            // The very snapshot that allowed it.
            next.publish(World::new(1));
            next.plane.forwarding.publish(sides(inside, outside));
            if passes {
                assert!(next.crosses(INSIDE, &forth));
            } else {
                next.drops(INSIDE, &forth, DropReason::SpoofedSource);
            }
            assert_eq!(next.count(|w| w.flows.inherited.get()), 1);
        }
    }
}

/// A failsafe rule that is gone, and a flag that anybody could have written: neither is a way around the policy of today.
#[test]
fn an_inherited_flow_passes_by_what_holds_now_alone() {
    /// In an entry.
    const STATE: usize = 45;
    const FLAGS: usize = 46;
    const FAILSAFE: u8 = 16;
    const THIS_NODE: u8 = 8;
    for family in [0, 1] {
        let [outside, inside] =
            [OUTSIDER, BOX].map(|who| Prefix::new(addr(who[family]), if family == 0 { 32 } else { 128 }));
        let failsafe = Failsafe(vec![FailsafeRule {
            from: outside,
            to: inside,
            protocol: None,
            ports: None,
        }]);
        let config = |failsafe: &Failsafe| DataplaneConfig {
            failsafe: failsafe.clone(),
            ..DataplaneConfig::default()
        };
        let memory = FlowMemory::private(ENTRIES, 7).unwrap();
        let mut bed = Bed::over(config(&failsafe), memory, Nanos::from_secs(1000));
        bed.plane.forwarding.publish(wire().build());
        bed.publish(World::new(1));
        let asked = from_to(OUTSIDER[family], BOX[family]).tcp(5, 22, SYN, b"");
        let answer = from_to(BOX[family], OUTSIDER[family]).tcp(22, 5, SYN_ACK, b"");
        assert!(bed.crosses(OUTSIDE, &asked));
        assert!(bed.crosses(INSIDE, &answer));
        for (rules, flag, passes) in [
            (&failsafe, FAILSAFE, true),
            (&Failsafe::default(), FAILSAFE, false),
            (&Failsafe::default(), THIS_NODE, false),
        ] {
            let bytes = left_by(&bed);
            let entry = bytes[4096..]
                .chunks_exact_mut(192)
                .find(|entry| entry[STATE] != 0)
                .unwrap();
            assert_eq!(entry[FLAGS] & (FAILSAFE | THIS_NODE), FAILSAFE);
            entry[FLAGS] = entry[FLAGS] & !FAILSAFE | flag;
            let memory = FlowMemory::open(bytes, ENTRIES, 99, Nanos::from_secs(1001)).unwrap();
            let mut next = Bed::over(config(rules), memory, Nanos::from_secs(1001));
            next.plane.forwarding.publish(wire().build());
            next.publish(World::new(1));
            assert_eq!(next.crosses(INSIDE, &answer), passes, "{flag}");
            assert_eq!(next.count(|w| w.flows.inherited.get()), 1);
        }
    }
}

#[test]
fn memory_of_another_shape_is_wiped() {
    let mut bed = begin(
        1,
        FlowMemory::private(ENTRIES, 7).unwrap(),
        Nanos::from_secs(1000),
    );
    bed.publish(World::new(1));
    assert!(bed.crosses(INSIDE, &from_to(CLIENT[0], WEB[0]).udp(1, 53, b"")));
    for change in [0, 8, 12, 16] {
        let bytes = left_by(&bed);
        bytes[change] ^= 1;
        let memory = FlowMemory::open(bytes, ENTRIES, 99, Nanos::from_secs(1000)).unwrap();
        assert!(!memory.is_inherited());
        let mut next = begin(1, memory, Nanos::from_secs(1000));
        let _ = next.run();
        assert_eq!(
            (next.count(|w| w.flows.inherited.get()), next.flows().len()),
            (0, 0)
        );
    }
    // A clock that has gone back, as after a reboot.
    let memory = FlowMemory::open(left_by(&bed), ENTRIES, 99, Nanos::from_secs(1)).unwrap();
    let mut next = begin(1, memory, Nanos::from_secs(1));
    assert_eq!(next.flows().len(), 0);
    // Too short, and not aligned.
    let needed = FlowMemory::required_bytes(ENTRIES);
    let words =
        || zerocopy::IntoBytes::as_mut_bytes(Box::leak(vec![0u64; needed / 8 + 1].into_boxed_slice()));
    assert!(FlowMemory::open(&mut words()[..needed - 1], ENTRIES, 1, Nanos(0)).is_err());
    assert!(FlowMemory::open(&mut words()[1..], ENTRIES, 1, Nanos(0)).is_err());
    assert!(FlowMemory::open(words(), ENTRIES, 1, Nanos(0)).is_ok());
}

/// On a wire whose sides are the same, addresses do not tell from where the original comes: the entry does, after a restart
/// and after its flow was judged again.
#[test]
fn a_forged_reply_does_not_turn_a_flow_round_that_nothing_binds_to_ports() {
    let changed = World {
        web_epoch: 21,
        ..World::new(2)
    };
    for family in [0, 1] {
        let conversation = |server: [&'static str; 2], port| {
            let forth = from_to(CLIENT[family], server[family]);
            let back = from_to(server[family], CLIENT[family]);
            (
                forth.tcp(1, port, SYN, b""),
                back.tcp(port, 1, SYN_ACK, b""),
                forth.tcp(1, port, ACK, b""),
                back.tcp(port, 1, ACK, b""),
            )
        };
        // The box may begin nothing; what the web pod sends would pass as the beginning of a flow, too.
        let (box_syn, box_syn_ack, box_forth, box_back) = conversation(BOX, 22);
        let (web_syn, web_syn_ack, web_forth, web_back) = conversation(WEB, 80);
        let mut bed = begin(
            1,
            FlowMemory::private(ENTRIES, 7).unwrap(),
            Nanos::from_secs(1000),
        );
        bed.publish(World::new(1));
        for (syn, syn_ack, forth) in [
            (&box_syn, &box_syn_ack, &box_forth),
            (&web_syn, &web_syn_ack, &web_forth),
        ] {
            assert!(bed.crosses(INSIDE, syn));
            assert!(bed.crosses(OUTSIDE, syn_ack));
            assert!(bed.crosses(INSIDE, forth));
        }

        // Its interfaces may have other numbers after a restart.
        for (inside, outside) in [(INSIDE, OUTSIDE), (OUTSIDE, INSIDE)] {
            let memory = FlowMemory::open(left_by(&bed), ENTRIES, 99, Nanos::from_secs(1010)).unwrap();
            let mut next = begin(1, memory, Nanos::from_secs(1010));
            let mut builder = ForwardingBuilder::new();
            for (id, peer, was) in [(inside, outside, INSIDE), (outside, inside, OUTSIDE)] {
                builder.port(Port {
                    tag: port(was, PortKind::Host, Side::Any).tag,
                    ..port(id, PortKind::Wire { peer }, Side::Any)
                });
            }
            next.plane.forwarding.publish(builder.build());
            next.publish(World::new(1));
            next.drops(inside, &box_back, DropReason::PolicyEgress);
            assert!(next.crosses(inside, &box_forth));
            assert!(next.crosses(outside, &box_back));
            next.drops(inside, &box_back, DropReason::PolicyEgress);
        }

        // The same without a restart: the flow is judged again at the forged packet.
        bed.publish(changed);
        let rejudged = bed.count(|worker| worker.rejudged.get());
        bed.crosses(INSIDE, &web_back);
        assert!(bed.crosses(INSIDE, &web_forth));
        assert!(bed.crosses(OUTSIDE, &web_back));
        assert!(bed.count(|worker| worker.rejudged.get()) > rejudged);
    }
}
