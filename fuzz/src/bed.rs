//! Workers over memory that lives as long as a target's process, and what must hold of them whatever they are sent.

use std::{cell::RefCell, sync::Arc};

use ringwall_dataplane::{
    dataplane::{Dataplane, DataplaneConfig},
    flow::{FlowDump, FlowMemory, FlowRecord},
    io::memory::{MemoryIo, MemoryPool},
    port::PortId,
    stats::{StatsReader, WorkerCounters},
    time::Nanos,
    worker::Worker,
};

/// Entries of the flow memory: as few as there can be.
pub(crate) const FLOWS: usize = 4096;
/// The longest frame.
pub(crate) const FRAME: usize = 2048;

thread_local! {
    /// Its frames are never given back to the system, so all beds of a thread have the same.
    static POOL: Arc<MemoryPool> = MemoryPool::new(256, FRAME);
    /// Memory for flows that no bed uses.
    static SPARE: RefCell<Vec<*mut [u64]>> = const { RefCell::new(Vec::new()) };
}

/// Flow memory that is lent to one bed.
struct BorrowedMemory(*mut [u64]);

impl BorrowedMemory {
    /// Takes memory and fills it, with zeros behind what there is.
    fn filled(bytes: &[u8]) -> Self {
        let words = FlowMemory::required_bytes(FLOWS).div_ceil(8);
        let spare = SPARE.with_borrow_mut(Vec::pop);
        let lent = Self(spare.unwrap_or_else(|| Box::into_raw(vec![0_u64; words].into_boxed_slice())));
        let memory = lent.bytes();
        let length = bytes.len().min(memory.len());
        memory[..length].copy_from_slice(&bytes[..length]);
        memory[length..].fill(0);
        lent
    }

    #[allow(unsafe_code)] // the dataplane wants memory for ever; a process that makes thousands of tables cannot give it
    fn bytes(&self) -> &'static mut [u8] {
        // SAFETY: made from a box of words that is never freed, so it is valid for ever and aligned. Whoever has a `BorrowedMemory`
        // asks once, before it lends the bytes to a plane; the memory is spare again only when that is gone (`Bed::drop`).
        let words = unsafe { &mut *self.0 };
        // SAFETY: the bytes of initialised words are initialised, and any bytes are a word.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 8) }
    }
}

/// Workers and what they share.
pub(crate) struct Bed {
    pub(crate) plane: Dataplane,
    pub(crate) stats: StatsReader,
    pub(crate) workers: Vec<Worker<MemoryIo>>,
    pool: Arc<MemoryPool>,
    pub(crate) now: Nanos,
    memory: BorrowedMemory,
}

impl Bed {
    /// Over flow memory with this in it; empty for a new one.
    pub(crate) fn new(config: DataplaneConfig, memory: &[u8], now: Nanos) -> Self {
        let pool = POOL.with(Arc::clone);
        let lent = BorrowedMemory::filled(memory);
        let flows = FlowMemory::open(lent.bytes(), FLOWS, 7, now).expect("as long as it must be");
        let (plane, slots) = Dataplane::new(config, flows, now).expect("at least one worker");
        let ports: Vec<PortId> = (0..4).map(PortId).collect();
        let workers = slots
            .into_iter()
            .map(|slot| Worker::new(slot, MemoryIo::new(&pool, &ports)))
            .collect();
        Self {
            stats: plane.stats(),
            plane,
            workers,
            pool,
            now,
            memory: lent,
        }
    }

    /// A small configuration, quick to make.
    pub(crate) fn config() -> DataplaneConfig {
        DataplaneConfig {
            ports: 4,
            handover: 64,
            held: 8,
            samples: 16,
            ..DataplaneConfig::default()
        }
    }

    /// Lets a frame come in by a port. False where there is no room for it.
    pub(crate) fn inject(&mut self, worker: usize, port: u16, frame: &[u8]) -> bool {
        let worker = worker % self.workers.len();
        self.workers[worker].io().inject(usize::from(port), frame)
    }

    /// Turns until nothing moves; what came out.
    pub(crate) fn run(&mut self) -> Vec<(PortId, Vec<u8>)> {
        let mut sent = Vec::new();
        loop {
            let mut frames = 0;
            for worker in &mut self.workers {
                frames += worker.run_once(self.now).frames;
                sent.extend(worker.io().take_sent());
            }
            if frames == 0 {
                break;
            }
        }
        while self.plane.next_resolve().is_some() {}
        while self.stats.next_sample().is_some() {}
        self.check_accounts();
        sent
    }

    /// Every frame that was received or made is accounted for.
    fn check_accounts(&self) {
        let count = |read: fn(&WorkerCounters) -> u64| self.stats.sum(read);
        assert_eq!(
            count(|w| w.received.get()) + count(|w| w.generated.get()),
            count(|w| w.forwarded.get()) + count(|w| w.drops.total()) + count(|w| w.held.get()),
            "received + generated = forwarded + dropped + held"
        );
        assert_eq!(count(|w| w.handed_over.get()), count(|w| w.taken_over.get()));
        assert_eq!(self.pool.returned_twice(), 0);
        assert_eq!(self.pool.free(), self.pool.total(), "frames are lost");
    }

    /// All flows, as somebody sees them who asks.
    pub(crate) fn flows(&mut self) -> Vec<FlowRecord> {
        let mut records = Vec::new();
        for worker in 0..self.workers.len() {
            let mut dump = FlowDump::new(16);
            loop {
                assert!(self.plane.request_flows(worker, dump).is_ok());
                let _ = self.workers[worker].run_once(self.now);
                dump = self.plane.next_flows(worker).expect("a turn answers");
                records.append(&mut dump.records);
                dump.records.reserve_exact(16);
                if dump.done {
                    break;
                }
            }
        }
        records
    }

    /// What the flow memory holds, for a successor.
    pub(crate) fn flow_memory(self) -> Vec<u8> {
        let memory = BorrowedMemory(self.memory.0);
        drop(self);
        memory.bytes().to_vec()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // Held packets wait for two seconds.
        self.now = self.now.after(Nanos::from_secs(5));
        let _ = self.run();
        assert_eq!(self.pool.free(), self.pool.total(), "frames are lost");
        // The table is whole: what it counts is what is there.
        let flows = self.flows().len() as u64;
        let used = self.stats.sum(|w| w.flows.used.get());
        assert!(flows <= used, "{flows} flows in {used} places");
        // Nothing refers to the memory any more once the workers are gone.
        self.workers.clear();
        SPARE.with_borrow_mut(|spare| spare.push(self.memory.0));
    }
}
