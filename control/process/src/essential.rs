//! Tasks and threads that a process cannot do without. The first that ends unexpectedly, by returning or by a panic, is
//! reported, and the process ends: a supervisor starts a whole one, where half a process would decide by old policy in
//! silence.

use std::{
    fmt,
    future::Future,
    io::{self, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    thread::JoinHandle,
};

use tokio::{sync::mpsc, task};

/// Exit status of a process that an essential task or thread has left, or that is stuck (EX_SOFTWARE).
pub const EXIT_SOFTWARE: u8 = 70;

/// Starts essential tasks and threads.
#[derive(Clone, Debug)]
pub struct Essential {
    ends: mpsc::UnboundedSender<TaskExit>,
    bell: Option<Arc<UnixStream>>,
}

/// Hears of the first that ends.
#[derive(Debug)]
pub struct Exits(mpsc::UnboundedReceiver<TaskExit>);

/// An essential task or thread that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskExit {
    /// Its name.
    pub name: String,
    /// Whether by a panic.
    pub panicked: bool,
}

impl fmt::Display for TaskExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.panicked {
            "panicked"
        } else {
            "ended unexpectedly"
        };
        write!(f, "{} {how}", self.name)
    }
}

/// Reports the end when it is dropped.
struct Report {
    name: String,
    essential: Essential,
}

impl Drop for Report {
    fn drop(&mut self) {
        // The receiver is gone where the process is ending as it should.
        let _ = self.essential.ends.send(TaskExit {
            name: std::mem::take(&mut self.name),
            panicked: std::thread::panicking(),
        });
        if let Some(bell) = &self.essential.bell {
            let _ = (&**bell).write(&[0]); // a full one has rung
        }
    }
}

impl Essential {
    /// A set without members.
    pub fn new() -> (Self, Exits) {
        let (ends, received) = mpsc::unbounded_channel();
        (Self { ends, bell: None }, Exits(received))
    }

    /// The same, for who waits for descriptors: from the first end on, the other end of this socket is readable.
    ///
    /// # Errors
    /// The socket cannot be made nonblocking.
    pub fn with_exit_signal(bell: UnixStream) -> io::Result<(Self, Exits)> {
        bell.set_nonblocking(true)?;
        let (mut essential, ends) = Self::new();
        essential.bell = Some(Arc::new(bell));
        Ok((essential, ends))
    }

    fn report(&self, name: &str) -> Report {
        Report {
            name: name.to_owned(),
            essential: self.clone(),
        }
    }

    /// Starts a task. One that is aborted counts as ended, too: do so only when the receiver is gone.
    pub fn task(&self, name: &str, body: impl Future<Output = ()> + Send + 'static) -> task::JoinHandle<()> {
        let report = self.report(name);
        tokio::spawn(async move {
            let _report = report;
            body.await;
        })
    }

    /// Starts a thread of this name.
    ///
    /// # Errors
    /// The system has no more threads to give.
    pub fn thread(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        let report = self.report(name);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _report = report;
            body();
        })
    }
}

impl Exits {
    /// The next that ends; for ever where nothing can end any more.
    pub async fn next(&mut self) -> TaskExit {
        match self.0.recv().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// The next that has ended already.
    pub fn take(&mut self) -> Option<TaskExit> {
        self.0.try_recv().ok()
    }
}

/// Tells a loop that stands still from one that is busy or asleep. Counts looks, not seconds: while the whole process is
/// stopped (a debugger, a suspended machine), nothing checks them either.
#[derive(Debug)]
pub struct StallDetector {
    limit: u32,
    turns: u64,
    looks: u32,
}

impl StallDetector {
    /// Stuck after so many looks without a turn.
    pub fn after(limit: u32) -> Self {
        Self {
            limit,
            turns: 0,
            looks: 0,
        }
    }

    /// Looks, given the number of turns so far.
    pub fn is_stuck(&mut self, turns: u64) -> bool {
        self.looks = if turns == self.turns { self.looks + 1 } else { 0 };
        self.turns = turns;
        self.looks >= self.limit
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn whatever_ends_is_reported_by_name_and_how() {
        let (essential, mut ends) = Essential::new();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let stays = essential
            .thread("stays", move || assert!(held.recv().is_err()))
            .unwrap();
        essential.task("stays too", std::future::pending());
        assert_eq!(ends.take(), None);

        let returns = essential.thread("returns", || {}).unwrap();
        returns.join().unwrap();
        let how = |name: &str, panicked| TaskExit {
            name: name.to_owned(),
            panicked,
        };
        assert_eq!(ends.take(), Some(how("returns", false)));

        let panics = essential.thread("panics", || panic!("a fault")).unwrap();
        assert!(panics.join().is_err());
        assert_eq!(ends.next().await, how("panics", true));

        essential.task("a task that returns", async {});
        assert_eq!(ends.next().await, how("a task that returns", false));
        essential.task("a task that panics", async { panic!("a fault") });
        let ended = ends.next().await;
        assert_eq!(ended.to_string(), "a task that panics panicked");

        let more = tokio::time::timeout(Duration::from_millis(20), ends.next()).await;
        assert!(more.is_err(), "{more:?}: the others run");
        drop(hold);
        stays.join().unwrap();
        assert_eq!(ends.next().await.to_string(), "stays ended unexpectedly");
    }

    #[test]
    fn a_bell_rings_at_the_first_end_and_not_before() {
        let (heard, bell) = UnixStream::pair().unwrap();
        heard.set_nonblocking(true).unwrap();
        let (essential, mut ends) = Essential::with_exit_signal(bell).unwrap();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let thread = essential
            .thread("ends", move || assert!(held.recv().is_err()))
            .unwrap();
        let rings = || std::io::Read::read(&mut &heard, &mut [0]).is_ok();
        assert!(!rings());
        drop(hold);
        thread.join().unwrap();
        assert!(rings());
        assert_eq!(
            ends.take().unwrap().name,
            "ends",
            "who hears the bell finds what ended"
        );
    }

    #[test]
    fn what_takes_no_turn_for_long_is_stuck_and_nothing_else() {
        let (mut turning, mut standing) = (StallDetector::after(6), StallDetector::after(6));
        for look in 0..20 {
            assert!(
                !turning.is_stuck(look + 1),
                "one turn between two looks is enough"
            );
            assert_eq!(standing.is_stuck(7), look >= 6, "look {look}");
        }
        assert!(!standing.is_stuck(8), "it goes on");
    }
}
