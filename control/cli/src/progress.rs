//! What a command is doing, for whoever waits for it: a line on standard error, after a second, on a terminal only.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Before that no progress is shown.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(250);

/// The line is there until this is dropped: before the command writes anything else.
pub(super) struct Progress {
    stages: Option<Sender<&'static str>>,
    /// What is counted beside the stage, once there is any.
    counted: Arc<AtomicU64>,
    shows: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins with what is done first.
    pub(super) fn new(stage: &'static str) -> Self {
        let counted = Arc::new(AtomicU64::new(0));
        if !io::stderr().is_terminal() {
            return Self {
                stages: None,
                counted,
                shows: None,
            };
        }
        let (stages, receiver) = channel();
        let shown = Arc::clone(&counted);
        let shows =
            std::thread::Builder::new().spawn(move || show(stage, &receiver, &shown, PATIENCE, io::stderr()));
        Self {
            stages: Some(stages),
            counted,
            shows: shows.ok(),
        }
    }

    /// Says how many of what it does are done.
    pub(super) fn count(&self, number: u64) {
        self.counted.store(number, Ordering::Relaxed);
    }

    /// Says what is done next.
    pub(super) fn stage(&self, stage: &'static str) {
        if let Some(stages) = &self.stages {
            // Without a thread there is no line.
            let _ = stages.send(stage);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stages = None;
        if let Some(shows) = self.shows.take() {
            let _ = shows.join();
        }
    }
}

/// Writes the line again and again until the sender of stages is gone, then clears it.
fn show(
    mut stage: &'static str,
    stages: &Receiver<&'static str>,
    counted: &AtomicU64,
    patience: Duration,
    mut out: impl Write,
) {
    let begin = Instant::now();
    let mut shown = false;
    loop {
        match stages.recv_timeout(TICK) {
            Ok(next) => stage = next,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let elapsed = begin.elapsed();
        if elapsed >= patience {
            shown = true;
            let number = match counted.load(Ordering::Relaxed) {
                0 => String::new(),
                number => format!(" {number},"),
            };
            let line = write!(out, "\r\x1b[K{stage} ...{number} {} s", elapsed.as_secs());
            if line.and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    }
    if shown {
        // Whoever closed standard error does not want it.
        let _ = write!(out, "\r\x1b[K").and_then(|()| out.flush());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn shown(patience: Duration, counted: u64) -> String {
        let (stages, receiver) = channel();
        stages.send("comparing").unwrap();
        drop(stages);
        let mut out = Vec::new();
        show("reading", &receiver, &AtomicU64::new(counted), patience, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn who_waits_is_told_the_stage_and_the_line_is_gone_afterwards() {
        assert_eq!(shown(Duration::ZERO, 0), "\r\x1b[Kcomparing ... 0 s\r\x1b[K");
        assert_eq!(shown(Duration::ZERO, 7), "\r\x1b[Kcomparing ... 7, 0 s\r\x1b[K");
    }

    #[test]
    fn who_does_not_wait_is_told_nothing() {
        assert_eq!(shown(PATIENCE, 7), "");
    }
}
