//! Input: entries of the flow memory that somebody left, and bytes of its header; then packets, as in [`crate::turn`].
//!
//! What must hold besides: opening it does not panic, whatever it holds, and leaves a whole table. An entry is at most a
//! claim that its flow was allowed: what policy denies now does not pass for it. The epochs of endpoints are made of a hash
//! of the input, so no entry can name them: that takes the installation's key.

use std::collections::HashSet;

use arbitrary::{Arbitrary, Unstructured};
use ringwall_dataplane::{
    addr::Addr,
    fuzzing::{FLOW_ENTRY, flow_memory, seal_flow},
    wire::FlowKey,
};

use crate::{
    turn::{Predecessor, Scenario, play},
    world,
};

/// Entries of one input.
const ENTRIES: u8 = 24;

#[derive(Arbitrary, Clone, Debug)]
struct Plan {
    segment: u8,
    place: u8,
    /// 1: IPv6. 2: all bytes are raw. 4: its sum does not hold.
    flags: u8,
    src: u8,
    dst: u8,
    src_port: u8,
    dst_port: u8,
    protocol: u8,
    state: u8,
    entry_flags: u8,
    /// Seconds since its last packet.
    age: u8,
    /// Bytes behind the key, from the check sum on; zeros behind them.
    rest: Vec<u8>,
}

const PROTOCOLS: [u8; 8] = [6, 17, 132, 1, 58, 47, 255, 6];
const PORTS: [u16; 8] = [80, 53, 443, 5000, 1000, 4789, 6443, 8472];

/// Offsets in an entry.
const SRC_PORT: usize = 40;
const CHECK: usize = 48;
const LAST_SEEN: usize = 56;

impl Plan {
    fn entry(&self, seed: u64) -> [u8; FLOW_ENTRY] {
        let mut entry = [0; FLOW_ENTRY];
        if self.flags & 2 != 0 {
            let length = self.rest.len().min(FLOW_ENTRY);
            entry[..length].copy_from_slice(&self.rest[..length]);
        } else {
            let family = self.flags & 1 != 0;
            entry[..16].copy_from_slice(&world::address_of(self.src, family).octets());
            entry[16..32].copy_from_slice(&world::address_of(self.dst, family).octets());
            let ports = [self.src_port, self.dst_port].map(|port| PORTS[usize::from(port) % 8].to_ne_bytes());
            entry[SRC_PORT..SRC_PORT + 4].copy_from_slice(&ports.concat());
            entry[44] = PROTOCOLS[usize::from(self.protocol) % 8];
            entry[45] = self.state;
            entry[46] = self.entry_flags;
            let length = self.rest.len().min(FLOW_ENTRY - CHECK);
            entry[CHECK..CHECK + length].copy_from_slice(&self.rest[..length]);
            // The scenario begins at 1000 seconds; later than that is refused.
            let seen = 1_000_000_000 * 1000_u64.saturating_sub(u64::from(self.age));
            entry[LAST_SEEN..LAST_SEEN + 8].copy_from_slice(&seen.to_ne_bytes());
        }
        if self.flags & 4 == 0 {
            seal_flow(seed, &mut entry);
        }
        entry
    }
}

/// The key of an entry, as far as it has one.
fn key(entry: &[u8; FLOW_ENTRY]) -> FlowKey {
    let word = |at: usize| u16::from_ne_bytes([entry[at], entry[at + 1]]);
    let address = |at: usize| Addr::v6(std::array::from_fn(|nth| entry[at + nth]));
    let number = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
    FlowKey {
        src: address(0),
        dst: address(16),
        zone: number(32),
        vlan: number(36),
        src_port: word(SRC_PORT),
        dst_port: word(SRC_PORT + 2),
        protocol: entry[44],
    }
}

/// Checks one input.
pub fn run(data: &[u8]) {
    let _ = parsed(&mut Unstructured::new(data), *blake3::hash(data).as_bytes());
}

fn parsed(input: &mut Unstructured<'_>, secret: [u8; 32]) -> arbitrary::Result<()> {
    let seed = input.arbitrary()?;
    let mut entries = Vec::new();
    for _ in 0..input.int_in_range(0..=ENTRIES)? {
        let plan: Plan = input.arbitrary()?;
        if std::env::var_os("FUZZ_SHOW").is_some() {
            eprintln!("{plan:?}");
        }
        entries.push((plan.segment, plan.place, plan.entry(seed)));
    }
    let mut memory = flow_memory(seed, &entries);
    // Of the header: magic, version, segments, entries of each, seed, how many were used.
    for _ in 0..input.int_in_range(0..=3)? {
        let at = usize::from(input.arbitrary::<u16>()?) % 4096;
        let value: u8 = input.arbitrary()?;
        // Only now and then what makes it another table altogether.
        if at >= 24 || value >= 0xf0 {
            memory[at] = value;
        }
    }
    let keys: HashSet<FlowKey> = entries.iter().map(|(_, _, entry)| key(entry)).collect();
    let scenario = Scenario::of(input)?;
    play(&scenario, secret, &Predecessor { memory, keys });
    Ok(())
}
