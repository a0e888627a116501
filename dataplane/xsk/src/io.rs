//! A worker's side.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use ringwall_dataplane::{
    frame::Frame,
    io::{Burst, PacketIo},
    port::PortId,
};

/// A worker's queues and its share of the pool.
#[derive(Debug)]
pub struct XskIo {
    waker: Waker,
}

/// Wakes a worker out of [`XskIo::wait`], from any thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Wakes the worker; its present or next wait ends at once.
    ///
    /// # Errors
    /// The kernel refuses the write.
    pub fn wake(&self) -> io::Result<()> {
        let _ = &self.0;
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl XskIo {
    /// Index of the worker that this belongs to.
    pub fn worker(&self) -> usize {
        0
    }

    /// Wakes the worker that this belongs to.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The port that a source receives from. Sources change when ports are closed or opened, inside
    /// [`PacketIo::flush`] only.
    pub fn source_port(&self, source: usize) -> Option<PortId> {
        let _ = source;
        None
    }

    /// Waits until a packet, a wake-up or the timeout comes. Answers whether it was before the timeout.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        let _ = timeout;
        false
    }
}

impl PacketIo for XskIo {
    fn sources(&self) -> usize {
        0
    }

    fn receive(&mut self, source: usize, burst: &mut Burst) {
        let _ = (source, burst);
    }

    fn send(&mut self, port: PortId, frame: Frame) -> bool {
        let _ = port;
        self.release(frame);
        false
    }

    fn allocate(&mut self) -> Option<Frame> {
        None
    }

    fn release(&mut self, frame: Frame) {
        let _ = frame.into_token();
    }

    fn flush(&mut self) {}
}
