//! How long a successor takes to begin. Not a test: run with
//! `cargo test --release -p ringwall-dataplane successor -- --ignored --nocapture --test-threads 1`. What packets take is
//! measured by `ringwall-bench memory`.

use super::*;

/// How long a successor takes to build its index anew over the flows that it finds.
#[test]
#[ignore = "a measurement"]
fn successor() {
    use crate::{
        flow::{
            entry::{AllowedBy, DecisionStamp},
            memory::{self, SEGMENTS},
            state::State,
        },
        wire::FlowKey,
    };
    const ENTRIES: usize = 262_144;
    let config = DataplaneConfig::default();
    let stamp = DecisionStamp {
        generation: Generation(1),
        epochs: [1, 2],
        provenance: [3, 4],
        allowed_by: AllowedBy::Policy,
    };
    for flows in [0_usize, 1_000, 60_000] {
        let memory = FlowMemory::private(ENTRIES, 7).unwrap();
        let mut tables = memory.into_tables(1, &config.flow, None);
        for flow in 0..flows {
            let [.., a, b, c] = flow.to_be_bytes();
            let key = FlowKey {
                src: Addr::v4([10, a, b, c]),
                dst: Addr::v4([10, 200, 0, 1]),
                zone: 0,
                vlan: 0,
                src_port: 7,
                dst_port: 8,
                protocol: 17,
            };
            let made = tables[0].insert(&key, State::UdpEstablished, [flow as u32; 2], &stamp, Nanos(2));
            made.unwrap();
        }
        let left: Vec<_> = tables.iter().map(|table| table.bytes()).collect();
        let image = memory::image(7, ENTRIES / SEGMENTS, &left);
        let words: Vec<u64> = image
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_ne_bytes(*word))
            .collect();
        let mut taken: Vec<f64> = (0..7)
            .map(|_| {
                let memory = zerocopy::IntoBytes::as_mut_bytes(words.clone().leak());
                let start = std::time::Instant::now();
                let memory = FlowMemory::open(memory, ENTRIES, 7, Nanos(3)).unwrap();
                let tables = memory.into_tables(1, &config.flow, None);
                let taken = start.elapsed().as_secs_f64() * 1e3;
                assert_eq!(
                    tables.iter().map(|table| table.activity.inherited).sum::<u64>(),
                    flows as u64
                );
                taken
            })
            .collect();
        taken.sort_by(f64::total_cmp);
        println!(
            "{flows} flows in {ENTRIES} places: {:.2} ms ({:.2} to {:.2})",
            taken[3], taken[0], taken[6]
        );
    }
}
