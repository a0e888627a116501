//! Port maps that hold TCP's ranges themselves, and those that need intervals: what both decide, and what of them is refused.

use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::classify::{
    forged::sections,
    layout::{INLINE_RANGES, PortMapRecord, Section},
};

/// A pod (10.0.0.1) whose row has this port map for everybody.
fn with_map(make: impl FnOnce(&mut ImageBuilder, &[u32]) -> u32) -> Vec<u8> {
    let mut image = ImageBuilder::new(Generation(1));
    let policy = image.policy("NetworkPolicy", "NetworkPolicy", "default", "ports");
    let rules: Vec<u32> = (0..8).map(|number| image.rule(policy, number)).collect();
    let map = make(&mut image, &rules);
    let row = image.row(NONE, &[map]);
    let pod = image.identity(Identity {
        endpoint: 0,
        ingress: row,
        ..somewhere(IdentityKind::Pod, 0)
    });
    image.endpoint("default", "pod", false, pod);
    image.host(v4(10, 0, 0, 1), pod);
    image.finish([0; 32]).unwrap()
}

/// Whether a port of TCP passes, and by which rule: alone and batched, by its spans, and those that spans begin with.
fn decide(snapshot: &Snapshot, port: u16) -> (bool, u32) {
    let (from, to) = (v4(192, 0, 2, 1), v4(10, 0, 0, 1));
    let verdict = judge(snapshot, from, to, tcp(port)).ingress;
    let packet = FirstPacket {
        src: from,
        dst: to,
        l4: tcp(port),
    };
    let many = snapshot.judge_many(&[packet], |_, _, _| NodeExemption::Trusted);
    assert_eq!(many[0].judgement.ingress, verdict, "port {port}, batched");
    let (row, _) = snapshot.rows_of(&snapshot.identify(to));
    let spans = snapshot.port_spans(row, snapshot.port_map_of(row, 0)).unwrap();
    let (_, of_tcp) = &spans.protocols[0];
    let (_, span) = of_tcp.iter().rfind(|(lo, _)| *lo <= port).unwrap();
    assert_eq!(*span, verdict, "port {port}, by spans {of_tcp:?}");
    assert!(of_tcp.is_sorted_by(|(a, _), (b, _)| a < b), "{of_tcp:?}");
    (verdict.allow, verdict.provenance)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_number_of_ranges_decides_as_they_say(
        borders in prop::collection::btree_set(prop_oneof![0..12_u16, 65_524..=u16::MAX, any::<u16>()], 0..14),
        rules in prop::collection::vec((0..3_usize, any::<bool>()), 7),
        otherwise in any::<bool>(),
        udp in any::<bool>(),
    ) {
        let borders: Vec<u16> = borders.into_iter().collect();
        let decision = |rule: u32, allows: bool| match allows {
            true => PortDecision::allow(rule),
            false => PortDecision { decision: Decision::DENY, provenance: rule },
        };
        let mut expected = Vec::new();
        let bytes = with_map(|image, numbers| {
            let mut ranges: Vec<PortRange> = Vec::new();
            for (pair, (rule, allows)) in borders.chunks(2).zip(&rules) {
                let (lo, hi) = (pair[0], *pair.last().unwrap());
                ranges.push(PortRange { protocol: 6, lo, hi, then: decision(numbers[*rule], *allows) });
                expected.push((lo, hi, (*allows, numbers[*rule])));
            }
            if udp {
                ranges.push(PortRange::allow(17, 53, 53, numbers[7]));
            }
            let otherwise = decision(numbers[6], otherwise);
            expected.push((0, u16::MAX, (otherwise.decision.allows(), numbers[6])));
            image.port_map(otherwise, &ranges)
        });
        let snapshot = Snapshot::open(&bytes).unwrap();
        let near = borders.iter().flat_map(|port| [port.saturating_sub(1), *port, port.saturating_add(1)]);
        for port in near.chain([0, 53, u16::MAX]) {
            let (_, _, right) = expected.iter().find(|(lo, hi, _)| *lo <= port && port <= *hi).unwrap();
            prop_assert_eq!(decide(&snapshot, port), *right, "port {}", port);
        }
    }
}

#[test]
fn few_ranges_need_no_intervals() {
    for (ranges, intervals) in [
        (1, 0),
        (INLINE_RANGES, 0),
        (INLINE_RANGES + 1, 2 * INLINE_RANGES as u64 + 3),
    ] {
        let bytes = with_map(|image, rules| {
            let ports =
                (1..=ranges as u16).map(|number| PortRange::allow(6, 100 * number, 100 * number, rules[0]));
            image.port_map(PortDecision::DENY, &ports.collect::<Vec<_>>())
        });
        let (_, length) = sections(&bytes)[Section::Intervals as usize];
        assert_eq!(length / 8, intervals, "{ranges} ranges");
    }
}

#[test]
fn ranges_that_contradict_each_other_are_refused() {
    let bytes = with_map(|image, rules| {
        let (two, inner) = ([80, 443], [PortRange::allow(6, 1, 9, rules[1])]);
        let nested = image.nested_port_map(PortDecision::DENY, &inner);
        let mut ranges = two.map(|port| PortRange::allow(6, port, port, rules[0])).to_vec();
        ranges.push(PortRange::allow(17, 53, 53, rules[2]));
        ranges.push(PortRange {
            protocol: 6,
            lo: 1000,
            hi: 2000,
            then: nested,
        });
        image.port_map(PortDecision::DENY, &ranges)
    });
    let (offset, length) = sections(&bytes)[Section::PortMaps as usize];
    let size = size_of::<PortMapRecord>();
    let maps = offset as usize..(offset + length) as usize;
    // The nested one is made first.
    let at = maps.start + size;
    let record = PortMapRecord::read_from_bytes(&bytes[at..at + size]).unwrap();
    assert_eq!(record.starts, [0, 0, 3, 3, 3]);
    assert_eq!((record.los, record.his), ([80, 443, 1000, 1], [80, 443, 2000, 0]));
    type Change = fn(&mut PortMapRecord);
    let changes: [(&str, Change); 9] = [
        ("both in ranges and in intervals", |map| {
            map.starts = [0, 3, 3, 3, 3]; // UDP's
        }),
        ("ranges out of order", |map| map.los.swap(0, 1)),
        ("ranges out of order", |map| map.his[0] = 443),
        ("ranges out of order", |map| map.his[1] = 79),
        ("ranges out of order", |map| (map.los[3], map.his[3]) = (2, 1)),
        ("ranges out of order", |map| map.decisions[3] = Decision::ALLOW),
        ("does not know", |map| map.provenances[0] = 1_000),
        ("does not know", |map| {
            map.decisions[1] = Decision(Decision::STAGED)
        }),
        ("nests", |map| map.provenances[2] = 1),
    ];
    for (problem, change) in changes {
        let (mut forged, mut record) = (bytes.clone(), record);
        change(&mut record);
        forged[at..at + size].copy_from_slice(record.as_bytes());
        assert!(seal(&mut forged));
        let error = Snapshot::open(&forged).map(drop).unwrap_err().to_string();
        assert!(error.contains(problem), "{record:?}: {error}");
    }
}
