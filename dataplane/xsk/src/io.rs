//! A worker's side.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};

use ringwall_dataplane::{
    frame::Frame,
    io::{BURST, Burst, PacketIo},
    port::PortId,
};

use crate::{
    pool::{BATCH, Batch, FrameNumber, Pool},
    queue::Queue,
    syscall,
};

/// Packets that are sent for other workers in one flush, at most.
const MAX_FOR_OTHERS: usize = 4 * BURST;

/// How a worker reaches a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Route {
    /// The port is not open.
    #[default]
    None,
    /// By a queue of its own: the index.
    Own(u16),
    /// By the worker that has the port's queue.
    Via(u16),
}

/// What the control side wants of a worker.
#[derive(Debug)]
pub(crate) enum QueueCommand {
    /// Take these queues.
    Add(Vec<Queue>),
    /// Give the queues of a port back.
    Remove(PortId),
}

/// The shared side of a worker: mailbox and wake-up.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// There are commands; the lock is taken only then.
    has_commands: AtomicBool,
    commands: Mutex<Vec<QueueCommand>>,
    /// Queues that were given back.
    pub(crate) returned_queues: Mutex<Vec<Queue>>,
    /// The worker of each queue of each port, by port number.
    pub(crate) owners: Mutex<Vec<Vec<usize>>>,
    /// How many commands the worker has carried out.
    pub(crate) completed: AtomicU64,
    /// The worker is in [`XskIo::wait`], or about to be.
    parked: AtomicBool,
    event: OwnedFd,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            has_commands: AtomicBool::new(false),
            commands: Mutex::default(),
            returned_queues: Mutex::default(),
            owners: Mutex::default(),
            completed: AtomicU64::new(0),
            parked: AtomicBool::new(false),
            event: syscall::create_event()?,
        })
    }

    /// Leaves a command and wakes the worker.
    pub(crate) fn send(&self, command: QueueCommand) -> io::Result<()> {
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(command);
        self.has_commands.store(true, SeqCst);
        syscall::signal_event(self.event.as_fd())
    }
}

/// Wakes a worker out of [`XskIo::wait`], from any thread.
#[derive(Clone, Debug)]
pub struct Waker(pub(crate) Arc<Mailbox>);

impl Waker {
    /// Wakes the worker; its present or next wait ends at once.
    ///
    /// # Errors
    /// The kernel refuses the write.
    pub fn wake(&self) -> io::Result<()> {
        syscall::signal_event(self.0.event.as_fd())
    }
}

/// A worker's queues and its share of the pool.
#[derive(Debug)]
pub struct XskIo {
    worker: usize,
    pool: Arc<Pool>,
    mailboxes: Arc<[Arc<Mailbox>]>,
    mailbox: Arc<Mailbox>,
    queues: Vec<Queue>,
    /// By port number.
    routes: Vec<Route>,
    /// Free frames of this worker's own, the hottest last.
    free: Vec<FrameNumber>,
    /// Freed here, of every home; sorted into `free` and `outboxes` at the end of the burst.
    freed: Vec<FrameNumber>,
    /// Frames of other homes.
    outboxes: Vec<Vec<FrameNumber>>,
    /// Frames in the packet plane's hands that came from here, less those that were given back here.
    in_use: i64,
    /// Packets that were accepted for others, whose port was closed meanwhile.
    stranded: u64,
    /// Workers that were handed packets since the last flush, a bit each.
    workers_to_wake: u64,
    polls: Vec<libc::pollfd>,
}

impl XskIo {
    pub(crate) fn new(worker: usize, pool: Arc<Pool>, mailboxes: Arc<[Arc<Mailbox>]>) -> Option<Self> {
        let mailbox = Arc::clone(mailboxes.get(worker)?);
        let free = pool.home_frames(worker);
        let total = pool.frames();
        Some(Self {
            worker,
            outboxes: (0..mailboxes.len())
                .map(|home| Vec::with_capacity(pool.home_frames(home).len()))
                .collect(),
            free: {
                let mut list = Vec::with_capacity(total);
                list.extend(free);
                list
            },
            freed: Vec::with_capacity(total),
            pool,
            mailboxes,
            mailbox,
            queues: Vec::new(),
            routes: Vec::new(),
            in_use: 0,
            stranded: 0,
            workers_to_wake: 0,
            polls: Vec::new(),
        })
    }

    /// Index of the worker that this belongs to.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// Wakes the worker that this belongs to.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.mailbox))
    }

    /// The port that a source receives from. Sources change when ports are closed or opened, inside
    /// [`PacketIo::flush`] only.
    pub fn source_port(&self, source: usize) -> Option<PortId> {
        self.queues.get(source).map(|queue| queue.port)
    }

    /// Waits until a packet, a wake-up or the timeout comes. Answers whether it was before the timeout.
    ///
    /// Call it after a flush, with nothing in hand that somebody waits for.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        self.return_frames(1);
        self.publish();
        self.mailbox.parked.store(true, SeqCst);
        // Whoever hands a packet over looks at `parked` after it has: so either it is seen here, or the event comes.
        let ready = if self.mailbox.has_commands.load(SeqCst)
            || self.inbox_length() > 0
            || self.queues.iter().any(Queue::busy)
        {
            true
        } else {
            self.poll(timeout)
        };
        self.mailbox.parked.store(false, SeqCst);
        ready
    }

    fn poll(&mut self, timeout: Duration) -> bool {
        self.polls.clear();
        self.polls.push(libc::pollfd {
            fd: self.mailbox.event.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        for queue in &self.queues {
            // A dead socket is always ready: it is left out (negative descriptors are).
            let fd = if queue.gone() { -1 } else { queue.fd() };
            self.polls.push(libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            });
        }
        if syscall::poll(&mut self.polls, timeout) == 0 {
            return false;
        }
        if self.polls.first().is_some_and(|event| event.revents != 0) {
            syscall::clear_event(self.mailbox.event.as_fd());
        }
        for (queue, poll) in self.queues.iter_mut().zip(self.polls.iter().skip(1)) {
            if poll.revents & (libc::POLLERR | libc::POLLNVAL) != 0 {
                queue.set_gone();
            }
        }
        true
    }

    fn inbox_length(&self) -> usize {
        self.pool
            .inboxes
            .get(self.worker)
            .map_or(0, crossbeam::queue::ArrayQueue::len)
    }

    fn route(&self, port: PortId) -> Route {
        self.routes.get(usize::from(port.0)).copied().unwrap_or_default()
    }

    /// Sends what other workers have handed over.
    fn send_for_others(&mut self) {
        let Some(inbox) = self.pool.inboxes.get(self.worker) else {
            return;
        };
        for _ in 0..MAX_FOR_OTHERS {
            let Some((port, frame)) = inbox.pop() else { return };
            if frame.is_chain() {
                let further = self.pool.pieces(&frame).len() as u64 - 1;
                self.pool.further_in_inboxes.fetch_sub(further, Relaxed);
            }
            let queue = match self.routes.get(usize::from(port.0)) {
                Some(Route::Own(index)) => self.queues.get_mut(usize::from(*index)),
                _ => None,
            };
            match queue {
                Some(queue) => {
                    if let Err(number) = queue.send(&self.pool, frame, true, &mut self.freed) {
                        self.freed.push(number);
                    }
                }
                None => {
                    self.stranded += 1; // closed meanwhile
                    self.pool.give_up(frame, &mut self.freed);
                }
            }
        }
    }

    /// Sorts freed frames: own ones are free, others go home in batches of at least `least`.
    fn return_frames(&mut self, least: usize) {
        for number in self.freed.drain(..) {
            let home = self.pool.home(number);
            match self.outboxes.get_mut(home) {
                Some(outbox) if home != self.worker => outbox.push(number),
                _ => self.free.push(number),
            }
        }
        for (home, outbox) in self.outboxes.iter_mut().enumerate() {
            while outbox.len() >= least.max(1) {
                let from = outbox.len().saturating_sub(BATCH);
                let batch: Batch = outbox.drain(from..).collect();
                if let Some(batch) = self.pool.return_batch(home, batch) {
                    outbox.extend(batch);
                    break;
                }
            }
        }
        while let Some(batch) = self.pool.take_returned(self.worker) {
            self.free.extend(batch);
        }
    }

    fn publish(&self) {
        let Some(counts) = self.pool.counts.get(self.worker) else {
            return;
        };
        let outside: usize = self.outboxes.iter().map(Vec::len).sum();
        counts
            .free
            .store((self.free.len() + self.freed.len() + outside) as u64, Relaxed);
        let (mut receiving, mut sending) = (0, 0);
        for queue in &self.queues {
            receiving += u64::from(queue.receiving);
            sending += u64::from(queue.sending);
        }
        counts.receiving.store(receiving, Relaxed);
        counts.sending.store(sending, Relaxed);
        counts.in_use.store(self.in_use, Relaxed);
        counts.stranded.store(self.stranded, Relaxed);
    }

    /// Carries out what the control side wants. Rare; it never waits for the lock.
    #[cold]
    fn run_commands(&mut self) {
        let mailbox = Arc::clone(&self.mailbox);
        let Ok(mut commands) = mailbox.commands.try_lock() else {
            return;
        };
        let Ok(mut returned) = mailbox.returned_queues.try_lock() else {
            return;
        };
        let Ok(owners) = mailbox.owners.try_lock() else {
            return;
        };
        mailbox.has_commands.store(false, SeqCst);
        let mut carried_out = 0;
        for command in commands.drain(..) {
            carried_out += 1;
            match command {
                QueueCommand::Add(queues) => self.queues.extend(queues),
                QueueCommand::Remove(port) => {
                    let (gone, kept) = self.queues.drain(..).partition(|queue| queue.port == port);
                    self.queues = kept;
                    for mut queue in Vec::into_iter(gone) {
                        queue.take_pending(&self.pool, &mut self.freed);
                        returned.push(queue);
                    }
                }
            }
        }
        self.routes.clear();
        for (port, owners) in owners.iter().enumerate() {
            let own = self
                .queues
                .iter()
                .position(|queue| usize::from(queue.port.0) == port);
            let through = (!owners.is_empty())
                .then(|| owners.get(self.worker % owners.len()))
                .flatten();
            self.routes.push(match (own, through) {
                (Some(index), _) => Route::Own(index as u16),
                (None, Some(&worker)) => Route::Via(worker as u16),
                (None, None) => Route::None,
            });
        }
        self.publish();
        mailbox.completed.fetch_add(carried_out, SeqCst);
    }

    /// Wakes the workers that were handed packets and sleep.
    fn wake_workers(&mut self) {
        while self.workers_to_wake != 0 {
            let worker = self.workers_to_wake.trailing_zeros() as usize;
            self.workers_to_wake &= self.workers_to_wake - 1;
            if let Some(mailbox) = self.mailboxes.get(worker)
                && mailbox.parked.load(SeqCst)
            {
                let _ = syscall::signal_event(mailbox.event.as_fd()); // it sleeps for a bounded time in any case
            }
        }
    }
}

impl PacketIo for XskIo {
    fn sources(&self) -> usize {
        self.queues.len()
    }

    #[inline]
    fn receive(&mut self, source: usize, burst: &mut Burst) {
        if let Some(queue) = self.queues.get_mut(source) {
            self.in_use += queue.receive(&self.pool, burst, &mut self.freed) as i64;
        }
    }

    #[inline]
    fn send(&mut self, port: PortId, frame: Frame) -> bool {
        let further = if frame.is_chain() {
            self.pool.pieces(&frame).len() as u64 - 1
        } else {
            0
        };
        self.in_use -= 1 + further as i64;
        match self.route(port) {
            Route::Own(index) => {
                let Some(queue) = self.queues.get_mut(usize::from(index)) else {
                    return false;
                };
                match queue.send(&self.pool, frame, false, &mut self.freed) {
                    Ok(()) => true,
                    Err(number) => {
                        self.freed.push(number);
                        false
                    }
                }
            }
            Route::Via(worker) => {
                let Some(inbox) = self.pool.inboxes.get(usize::from(worker)) else {
                    return false;
                };
                if further > 0 {
                    self.pool.further_in_inboxes.fetch_add(further, Relaxed);
                }
                match inbox.push((port, frame)) {
                    Ok(()) => {
                        self.workers_to_wake |= 1 << worker;
                        true
                    }
                    Err((_, frame)) => {
                        self.pool.further_in_inboxes.fetch_sub(further, Relaxed);
                        self.pool.give_up(frame, &mut self.freed);
                        false
                    }
                }
            }
            Route::None => {
                self.pool.give_up(frame, &mut self.freed);
                false
            }
        }
    }

    fn allocate(&mut self) -> Option<Frame> {
        if self.free.is_empty() {
            self.return_frames(BATCH);
        }
        let number = self.free.pop()?;
        self.in_use += 1;
        self.pool.frame(number, 0, PortId(u16::MAX))
    }

    #[inline]
    fn release(&mut self, frame: Frame) {
        self.in_use -= self.pool.give_up(frame, &mut self.freed) as i64;
    }

    fn rest<'a>(&'a self, frame: &'a Frame) -> impl Iterator<Item = &'a [u8]> {
        self.pool.rest(frame)
    }

    fn flush(&mut self) {
        if self.mailbox.has_commands.load(Relaxed) {
            self.run_commands();
        }
        std::sync::atomic::fence(SeqCst); // what was handed over is seen before `parked` is looked at
        self.wake_workers();
        self.send_for_others();
        for queue in &mut self.queues {
            queue.transmit(&self.pool, &mut self.freed);
        }
        self.return_frames(BATCH);
        for queue in &mut self.queues {
            queue.prepare(&self.pool, &mut self.free);
        }
        self.publish();
    }
}
