//! Flows that begin in one burst: policy is asked about them all at once, and nothing else may come of it.

use super::*;
use crate::io::BURST;

/// SYNs and datagrams between everybody, each twice.
fn frames(family: usize) -> Vec<Vec<u8>> {
    let who = [CLIENT, WEB, BOX, UNOWNED, NODE, OUTSIDER];
    let mut frames = Vec::new();
    for src in who {
        for dst in who {
            let template = from_to(src[family], dst[family]);
            for (low, high) in [(1000, 80), (80, 1000), (1000, 443), (53, 53)] {
                for _ in 0..2 {
                    frames.push(template.tcp(low, high, SYN, b""));
                    frames.push(template.udp(low, high, b"x"));
                }
            }
        }
    }
    frames
}

/// What came of some packets.
#[derive(PartialEq)]
struct Outcome {
    /// In order.
    sent: Vec<(PortId, Vec<u8>)>,
    /// By reason.
    drops: Vec<u64>,
    hits: u64,
    misses: u64,
}

fn outcome(family: usize, at_once: usize) -> Outcome {
    let mut bed = Bed::wire().settled();
    let mut sent = Vec::new();
    for frames in frames(family).chunks(at_once) {
        for frame in frames {
            assert!(bed.workers[0].io().inject(usize::from(INSIDE.0), frame));
        }
        sent.extend(bed.run());
    }
    Outcome {
        sent,
        drops: DropReason::ALL
            .iter()
            .map(|reason| bed.stats.drops(*reason))
            .collect(),
        hits: bed.stats.sum(|worker| worker.flow_hits.get()),
        misses: bed.stats.sum(|worker| worker.flow_misses.get()),
    }
}

#[test]
fn a_burst_of_new_flows_is_judged_as_one_after_the_other() {
    for family in [0, 1] {
        let alone = outcome(family, 1);
        assert!(alone.sent.len() > 50, "{}", alone.sent.len());
        assert!(alone.drops.iter().sum::<u64>() > 100, "{:?}", alone.drops);
        assert!(alone.hits > 0, "the second meets the flow of the first");
        for at_once in [7, BURST] {
            assert!(outcome(family, at_once) == alone, "{at_once} at once");
        }
    }
}
