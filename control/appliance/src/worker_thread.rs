//! A worker's thread: turns, and sleep when there is nothing to do.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ringwall_config::IdlePolicy;
use ringwall_dataplane::{time::Nanos, worker::Worker};
use ringwall_xsk::{Waker, XskIo};
use rustix::{
    event::{EventfdFlags, eventfd},
    time::{ClockId, clock_gettime},
};

/// How long a worker with nothing to do keeps looking before it sleeps (`adaptive`). Longer than the gap between two
/// packets of a busy flow, short enough not to disturb a pod on the same core.
const SPIN: Nanos = Nanos(50_000);
/// Longest sleep: the watchdog wants to see a turn, and timers have to run.
const SLEEP: Duration = Duration::from_millis(100);
/// Longest sleep while packets wait for a neighbour.
const SLEEP_WITH_HOLDS: Duration = Duration::from_millis(2);

/// Least time between two notes about requests from one busy worker: a scan asks for many neighbours.
const REQUEST_PAUSE: Nanos = Nanos(2_000_000);

/// The clock of the packet plane: CLOCK_MONOTONIC, which a successor process shares.
pub fn now() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    Nanos((time.tv_sec as u64).saturating_mul(1_000_000_000) + time.tv_nsec as u64)
}

/// What a worker knows of the others: how to wake those that sleep.
pub struct WorkerWakers {
    wakers: Vec<Waker>,
    asleep: Vec<AtomicBool>,
}

impl WorkerWakers {
    /// For as many workers as there are wakers.
    pub fn new(wakers: Vec<Waker>) -> Self {
        Self {
            asleep: wakers.iter().map(|_| AtomicBool::new(false)).collect(),
            wakers,
        }
    }

    /// Wakes the workers of a bit mask that sleep.
    fn wake(&self, mut workers: u64) {
        while workers != 0 {
            let worker = workers.trailing_zeros() as usize;
            workers &= workers - 1;
            if let (Some(asleep), Some(waker)) = (self.asleep.get(worker), self.wakers.get(worker))
                && asleep.swap(false, Ordering::SeqCst)
            {
                let _ = waker.wake();
            }
        }
    }

    /// Wakes every worker that sleeps.
    pub fn wake_all(&self) {
        self.wake(u64::MAX >> (64 - self.wakers.len().clamp(1, 64)));
    }
}

/// An event that the thread which resolves neighbours waits for.
#[derive(Debug)]
pub struct RequestSignal(OwnedFd);

impl RequestSignal {
    /// An event that has not happened.
    ///
    /// # Errors
    /// The kernel refuses another descriptor.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// It happened.
    pub fn signal(&self) {
        // It fails only where nothing has read 2^64 signals.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes note of every signal so far.
    pub fn clear(&self) {
        // It fails where there was none.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for RequestSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs until told to stop; the sockets close when it returns. `requests` is signalled when workers want a neighbour resolved
/// or have a station to report.
pub fn worker_loop(
    mut worker: Worker<XskIo>,
    idle: IdlePolicy,
    sleepers: &Arc<WorkerWakers>,
    requests: &RequestSignal,
    stop: &AtomicBool,
) {
    let me = worker.index();
    let mut last_busy = now();
    let mut last_signal = Nanos(0);
    while !stop.load(Ordering::Relaxed) {
        let time = now();
        let turn = worker.run_once(time);
        if turn.handed_to != 0 {
            sleepers.wake(turn.handed_to);
        }
        if turn.has_requests && time.since(last_signal) >= REQUEST_PAUSE && worker.take_requests_note() {
            last_signal = time;
            requests.signal();
        }
        if turn.frames > 0 {
            last_busy = time;
            continue;
        }
        if idle == IdlePolicy::BusyPoll || time.since(last_busy) < SPIN {
            std::hint::spin_loop();
            continue;
        }
        // First the note, then the look: whoever hands over after the look finds the note.
        sleepers.asleep[me].store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        if !worker.has_work() {
            if turn.has_requests && worker.take_requests_note() {
                requests.signal();
            }
            worker.offline();
            worker
                .io()
                .wait(if turn.has_held { SLEEP_WITH_HOLDS } else { SLEEP });
        }
        sleepers.asleep[me].store(false, Ordering::SeqCst);
    }
}
