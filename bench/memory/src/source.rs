//! Where a worker's packets come from: a few frames that stay in the first cache, as those of a NIC's ring should, into
//! which the next packet's header is written when it is received. So that of many flows only the worker's own memory
//! falls out of the cache, and not the load's.

use std::sync::Arc;

use anyhow::{Context, bail};
use ringwall_dataplane::{
    frame::Frame,
    io::{
        BURST, Burst, PacketIo,
        memory::{MemoryIo, MemoryPool},
    },
    port::PortId,
};

/// Frames of one worker: some bursts, less than half of a first cache of 32 KiB.
const FRAMES: usize = 4 * BURST;
/// Bytes of a buffer.
const BUFFER: usize = 128;
const ETHERNET: usize = 14;

/// What tells a flow's packets from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEnds {
    /// Low 32 bits of the source address.
    pub src: u32,
    /// Low 32 bits of the destination address.
    pub dst: u32,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

impl FlowEnds {
    fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
        }
    }
}

/// Which packets come next.
#[derive(Clone, Debug)]
pub struct Script {
    /// A whole frame, whose addresses and ports are replaced.
    pub template: Vec<u8>,
    /// The port that they come in by.
    pub port: PortId,
    /// Whether they go from a flow's destination to its source.
    pub reversed: bool,
}

/// The packets of one worker.
#[derive(Debug)]
pub struct FrameSource {
    spare: Vec<Frame>,
    /// Flows in the order in which their packets come, again and again.
    pub flows: Vec<FlowEnds>,
    script: Script,
    /// The one's complement sum of the template's IPv4 header without checksum and addresses.
    header_sum: u32,
    is_v6: bool,
    next: usize,
    left: usize,
    // What the frames came from; they go back there with the process.
    _pool: Arc<MemoryPool>,
}

impl FrameSource {
    /// A source of no packet yet.
    pub fn new() -> anyhow::Result<Self> {
        let pool = MemoryPool::new(FRAMES, BUFFER);
        let mut io = MemoryIo::new(&pool, &[]);
        let spare: Vec<Frame> = std::iter::from_fn(|| io.allocate()).collect();
        if spare.len() != FRAMES {
            bail!("the pool gave {} of {FRAMES} frames", spare.len());
        }
        Ok(Self {
            spare,
            flows: Vec::new(),
            script: Script {
                template: Vec::new(),
                port: PortId(0),
                reversed: false,
            },
            header_sum: 0,
            is_v6: false,
            next: 0,
            left: 0,
            _pool: pool,
        })
    }

    /// Lets so many packets come, from the first flow on.
    pub fn play(&mut self, script: Script, packets: usize) -> anyhow::Result<()> {
        let header = script
            .template
            .get(ETHERNET..ETHERNET + 20)
            .context("the template has no IP header")?;
        if script.template.len() > BUFFER || self.flows.is_empty() {
            bail!(
                "a template of {} bytes, {} flows",
                script.template.len(),
                self.flows.len()
            );
        }
        self.is_v6 = header[0] >> 4 == 6;
        let kept = header[..10].as_chunks::<2>().0;
        self.header_sum = kept.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
        self.script = script;
        self.next = 0;
        self.left = packets;
        Ok(())
    }

    /// Packets that have not come yet.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Lets no more packets come.
    pub fn stop(&mut self) {
        self.left = 0;
    }

    /// Frames that no packet is in.
    pub(crate) fn spare(&mut self) -> &mut Vec<Frame> {
        &mut self.spare
    }

    #[inline]
    fn write(&self, bytes: &mut [u8], flow: FlowEnds) {
        copy(bytes, &self.script.template);
        let [src, dst] = [flow.src, flow.dst].map(u32::to_be_bytes);
        let ports = if self.is_v6 {
            bytes[34..38].copy_from_slice(&src);
            bytes[50..54].copy_from_slice(&dst);
            54
        } else {
            let halves = |addr: u32| (addr >> 16) + (addr & 0xffff);
            let sum = self.header_sum + halves(flow.src) + halves(flow.dst);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            bytes[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            bytes[26..30].copy_from_slice(&src);
            bytes[30..34].copy_from_slice(&dst);
            34
        };
        bytes[ports..ports + 2].copy_from_slice(&flow.src_port.to_be_bytes());
        bytes[ports + 2..ports + 4].copy_from_slice(&flow.dst_port.to_be_bytes());
    }
}

/// Copies a packet into a buffer of its length. In place for the lengths that loads have, since what a library does cannot be told
/// from what the worker has it do.
#[inline]
fn copy(to: &mut [u8], from: &[u8]) {
    #[inline]
    fn of_length<const LENGTH: usize>(to: &mut [u8], from: &[u8]) {
        if let (Some(to), Some(from)) = (to.first_chunk_mut::<LENGTH>(), from.first_chunk()) {
            *to = *from;
        }
    }
    match from.len() {
        // TCP over IPv4, UDP over IPv4, UDP over IPv6.
        54 => of_length::<54>(to, from),
        60 => of_length::<60>(to, from),
        80 => of_length::<80>(to, from),
        _ => to.copy_from_slice(from),
    }
}

impl PacketIo for FrameSource {
    fn sources(&self) -> usize {
        1
    }

    // Out of line, so that its instructions can be told from the worker's.
    #[inline(never)]
    fn receive(&mut self, _: usize, burst: &mut Burst) {
        let count = self.left.min(BURST).min(self.spare.len());
        self.left -= count;
        for _ in 0..count {
            let Some(mut frame) = self.spare.pop() else { return };
            let flow = self.flows[self.next];
            self.next += 1;
            if self.next == self.flows.len() {
                self.next = 0;
            }
            let flow = if self.script.reversed {
                flow.reversed()
            } else {
                flow
            };
            let fits = frame.set_len(self.script.template.len()); // `play` has looked
            debug_assert!(fits);
            frame.set_port(self.script.port);
            self.write(frame.bytes_mut(), flow);
            burst.push(frame);
        }
    }

    #[inline(never)]
    fn send(&mut self, _: PortId, frame: Frame) -> bool {
        self.spare.push(frame);
        true
    }

    fn allocate(&mut self) -> Option<Frame> {
        self.spare.pop()
    }

    #[inline(never)]
    fn release(&mut self, frame: Frame) {
        self.spare.push(frame);
    }

    fn flush(&mut self) {}
}
