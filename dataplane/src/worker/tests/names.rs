//! Flows and drops have names that a person can copy.

use super::{restart::left_by, *};
use crate::flow::{FlowId, memory::SEGMENTS};

const ENTRIES: usize = SEGMENTS * 16;

fn only_flow(bed: &mut Bed) -> FlowRecord {
    let flows = bed.flows();
    assert_eq!(flows.len(), 1, "{flows:?}");
    flows[0]
}

#[test]
fn a_flow_keeps_its_name_for_its_life_and_the_next_one_has_another() {
    let mut bed = Bed::with(DataplaneConfig::default(), ENTRIES).settled();
    bed.publish(World::new(1));
    bed.plane.forwarding.publish(wire().build());
    let (forth, back) = (from_to(CLIENT[0], WEB[0]), from_to(WEB[0], CLIENT[0]));
    assert!(bed.crosses(INSIDE, &forth.tcp(5, 80, SYN, b"")));
    let begun = only_flow(&mut bed);
    let near = bed.now.since(begun.began);
    assert!(near < Nanos::from_millis(68), "{near:?}");

    bed.wait(Nanos::from_secs(3));
    assert!(bed.crosses(OUTSIDE, &back.tcp(80, 5, SYN_ACK, b"")));
    bed.publish(World {
        web_epoch: 21,
        ..World::new(2)
    });
    assert!(bed.crosses(INSIDE, &forth.tcp(5, 80, ACK, b"abc")));
    let later = only_flow(&mut bed);
    assert_eq!((later.id, later.began), (begun.id, begun.began));
    assert_eq!(later.generation, Generation(2));
    assert_eq!((later.packets, later.bytes), ([2, 1], [40 + 43, 40]));

    let memory = FlowMemory::open(left_by(&bed), ENTRIES, 99, bed.now).unwrap();
    let mut next = Bed::over(DataplaneConfig::default(), memory, bed.now);
    let _ = next.run();
    assert_eq!(only_flow(&mut next).id, begun.id, "after a restart");

    // Ended, and begun anew between the same ports.
    assert!(bed.crosses(INSIDE, &forth.tcp(5, 80, RST, b"")));
    bed.wait(Nanos::from_secs(20));
    assert!(bed.crosses(INSIDE, &forth.tcp(5, 80, SYN, b"")));
    let anew = only_flow(&mut bed);
    assert_ne!(anew.id, begun.id);
    assert!(bed.crosses(INSIDE, &forth.tcp(6, 80, SYN, b"")));
    let mut names: Vec<FlowId> = bed.flows().iter().map(|flow| flow.id).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 2);
}

#[test]
fn drops_have_names_that_do_not_depend_on_the_worker() {
    let named = |workers| {
        let config = DataplaneConfig {
            workers,
            ..DataplaneConfig::default()
        };
        let mut bed = Bed::with(config, ENTRIES).settled();
        bed.publish(World::new(1));
        bed.plane.forwarding.publish(wire().build());
        let forth = from_to(OUTSIDER[0], WEB[0]);
        for port in [81, 82, 82] {
            bed.wait(Nanos::from_millis(1));
            bed.drops(OUTSIDE, &forth.tcp(1, port, SYN, b""), DropReason::PolicyIngress);
        }
        // In one turn.
        for _ in 0..2 {
            assert!(bed.workers[0].io().inject(1, &[0; 9]));
        }
        let _ = bed.run();
        std::iter::from_fn(|| bed.stats.next_sample())
            .map(|sample| sample.id)
            .collect::<std::collections::BTreeSet<_>>()
    };
    let one = named(1);
    assert_eq!(one.len(), 5);
    assert_eq!(named(4), one);
}

/// A question about a large and nearly empty table does not hold its worker up.
#[test]
fn a_question_about_flows_is_answered_in_small_parts() {
    let mut bed = Bed::with(DataplaneConfig::default(), SEGMENTS * 256);
    bed.publish(World::new(1));
    bed.plane.forwarding.publish(wire().build());
    let flows = (0..3000_u16)
        .map(u16::to_be_bytes)
        .filter(|[a, b]| {
            bed.crosses(
                INSIDE,
                &from_to(CLIENT[0], &format!("198.18.{a}.{b}")).udp(1, 53, b""),
            )
        })
        .count();
    let mut dump = FlowDump::new(10_000);
    let (mut parts, mut found) = (0, 0);
    while !dump.done {
        assert!(bed.plane.request_flows(0, dump).is_ok());
        bed.workers[0].run_once(bed.now);
        dump = bed.plane.next_flows(0).unwrap();
        let part = dump.records.drain(..).count();
        assert!(part <= 1024, "{part} at once");
        found += part;
        parts += 1;
    }
    assert!(flows > 2500 && parts > 2, "{flows} flows in {parts} parts");
    assert_eq!(found, flows);
}

#[test]
fn an_id_is_sixteen_digits() {
    let id = FlowId(0x0012_3456_789a_bcde);
    assert_eq!(id.to_string(), "00123456789abcde");
    assert_eq!("00123456789ABCDE".parse(), Ok(id));
    for wrong in [
        "",
        "123",
        "+0123456789abcde",
        "g0123456789abcde",
        "000123456789abcde",
    ] {
        assert!(wrong.parse::<FlowId>().is_err(), "{wrong}");
    }
}
