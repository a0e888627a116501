//! What the least that a stateful firewall does would cost: read a packet's addresses and ports, hash them, and find them in
//! a table that is read in one cache line per packet. No states, no policy, no counters.

use anyhow::ensure;
use ringwall_dataplane::{
    io::{BURST, Burst, PacketIo},
    port::PortId,
    prefetch::prefetch,
    wire::TcpFlags,
};

use crate::{
    load::{self, Plan, Round},
    mix::Mix,
    source::{FlowEnds, FrameSource},
};

const SLOTS: usize = 4;

/// Flows with one hash, or the one before: a cache line. Ports 0 are nothing's.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Bucket([Slot; SLOTS]);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    addrs: u64,
    ports: u32,
    number: u32,
}

/// The loop, with its own packets.
#[derive(Debug)]
pub struct Control {
    source: FrameSource,
    buckets: Vec<Bucket>,
    found: u64,
    out: PortId,
}

impl Control {
    /// A table of the flows of a plan, which are established, over IPv4.
    ///
    /// # Errors
    /// The plan makes no sense.
    pub fn new(plan: Plan) -> anyhow::Result<Self> {
        let mut source = FrameSource::new()?;
        source.flows = load::flows(plan);
        let count = (plan.flows * 2).div_ceil(SLOTS).next_power_of_two();
        let mut control = Self {
            source,
            buckets: vec![Bucket::default(); count],
            found: 0,
            out: PortId(1),
        };
        for number in 0..control.source.flows.len() {
            control.insert(control.source.flows[number], number as u32)?;
        }
        if plan.shuffled {
            load::shuffle(&mut control.source.flows);
        }
        Ok(control)
    }

    fn insert(&mut self, flow: FlowEnds, number: u32) -> anyhow::Result<()> {
        let addrs = u64::from(flow.src) << 32 | u64::from(flow.dst);
        let ports = u32::from(flow.src_port) << 16 | u32::from(flow.dst_port);
        let first = self.bucket(addrs, ports);
        for step in 0..self.buckets.len() {
            let at = (first + step) & (self.buckets.len() - 1);
            if let Some(slot) = self.buckets[at].0.iter_mut().find(|slot| slot.ports == 0) {
                *slot = Slot { addrs, ports, number };
                return Ok(());
            }
        }
        anyhow::bail!("the control's table is full")
    }

    #[inline]
    fn bucket(&self, addrs: u64, ports: u32) -> usize {
        let product =
            u128::from(addrs ^ 0x9e37_79b9_7f4a_7c15) * u128::from(u64::from(ports) ^ 0xbf58_476d_1ce4_e5b9);
        (product as u64 ^ (product >> 64) as u64) as usize & (self.buckets.len() - 1)
    }

    #[inline]
    fn contains(&self, mut at: usize, addrs: u64, ports: u32) -> bool {
        loop {
            let bucket = &self.buckets[at];
            if bucket
                .0
                .iter()
                .any(|slot| slot.addrs == addrs && slot.ports == ports)
            {
                return true;
            }
            if bucket.0[SLOTS - 1].ports == 0 {
                return false;
            }
            at = (at + 1) & (self.buckets.len() - 1);
        }
    }

    /// As [`crate::load::Load::round`].
    ///
    /// # Errors
    /// A packet was not found in the table.
    pub fn round(
        &mut self,
        packets: usize,
        clock: impl Fn() -> anyhow::Result<u64>,
    ) -> anyhow::Result<Round> {
        let script = load::script(Mix::Established, PortId(0), TcpFlags::ACK);
        self.source.play(script, packets)?;
        self.found = 0;
        let start = clock()?;
        self.run();
        let elapsed = clock()? - start;
        ensure!(
            self.found == packets as u64,
            "the control found {} of {packets} packets",
            self.found
        );
        Ok(Round { packets, elapsed })
    }

    #[inline(never)]
    fn run(&mut self) {
        let mut burst = Burst::new();
        let mut keys = [(0, 0_u64, 0_u32); BURST];
        while self.source.left() > 0 {
            self.source.receive(0, &mut burst);
            for (frame, key) in burst.iter().zip(&mut keys) {
                let Some((addrs, ports)) = read(frame.bytes()) else {
                    continue;
                };
                *key = (self.bucket(addrs, ports), addrs, ports);
                prefetch(&self.buckets[key.0]);
            }
            for (frame, (at, addrs, ports)) in burst.drain(..).zip(keys) {
                self.found += u64::from(self.contains(at, addrs, ports));
                self.source.send(self.out, frame);
            }
        }
    }
}

/// Addresses and ports of UDP over IPv4 without options.
#[inline]
fn read(frame: &[u8]) -> Option<(u64, u32)> {
    let header: &[u8; 42] = frame.first_chunk()?;
    let is_udp = header[12..15] == [8, 0, 0x45] && header[23] == 17;
    let addrs = header[26..34].first_chunk()?;
    let ports = header[34..38].first_chunk()?;
    is_udp.then_some((u64::from_be_bytes(*addrs), u32::from_be_bytes(*ports)))
}
