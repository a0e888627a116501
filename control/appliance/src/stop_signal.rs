//! Ends a supervised process when it is told to, or when its supervisor is gone.

use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use ringwall_messages::{Lifeline, SupervisorOrder};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Takes the line to the supervisor over. The supervisor takes its end for the death of the process; so that it hears of
/// that before the sockets are closed, the line is moved to where the kernel closes first.
pub fn take_line() -> io::Result<Lifeline> {
    Ok(ringwall_xsk::close_early(Lifeline::of_stdin()?.into())?.into())
}

/// Becomes readable when the process has to stop: SIGTERM, SIGINT, or the end of the supervisor.
#[derive(Debug)]
pub struct StopSignal {
    told: UnixStream,
    /// Kept so that the read end never sees the end of the stream by accident.
    _teller: UnixStream,
    hung_up: Arc<AtomicBool>,
}

impl StopSignal {
    /// Catches SIGTERM and SIGINT from now on, and SIGHUP, which ends nothing.
    pub fn catch() -> io::Result<Self> {
        let (told, teller) = UnixStream::pair()?;
        told.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT] {
            signal_hook::low_level::pipe::register(signal, teller.try_clone()?)?;
        }
        let hung_up = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGHUP, Arc::clone(&hung_up))?;
        Ok(Self {
            told,
            _teller: teller,
            hung_up,
        })
    }

    /// Also stops when the line to the supervisor ends, which holds its other end and nobody else does. Answers what
    /// orders come until then.
    pub fn follow_supervisor(&self, line: Arc<Lifeline>) -> io::Result<mpsc::Receiver<SupervisorOrder>> {
        let teller = StopOnDrop(self._teller.try_clone()?);
        let (heard, orders) = mpsc::channel();
        std::thread::Builder::new()
            .name("rw-lifeline".to_owned())
            .spawn(move || {
                let teller = teller;
                while let Some(received) = line.hear() {
                    // Nobody may wait for one.
                    let _ = heard.send(received.message);
                }
                // First of all: the log's reader is likely gone with the supervisor.
                drop(teller);
                tracing::warn!("the supervisor has exited: stopping");
            })?;
        Ok(orders)
    }

    /// Whether there was a SIGHUP since this was last asked.
    pub fn hung_up(&self) -> bool {
        self.hung_up.swap(false, Ordering::Relaxed)
    }

    /// Whether the process has to stop.
    pub fn is_set(&self) -> bool {
        let mut byte = [0; 16];
        matches!((&self.told).read(&mut byte), Ok(n) if n > 0)
    }
}

/// Tells the process to stop when it is dropped, by a panic, too: a process that could not hear the end of its supervisor
/// would outlive it.
struct StopOnDrop(UnixStream);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let _ = io::Write::write_all(&mut &self.0, &[0]);
    }
}

impl AsFd for StopSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }
}
