//! Asks a program what it is.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::Stdio,
};

use super::super::{about::About, children::Program};

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// A program that is asked. Its end is killed when this is dropped.
#[derive(Debug)]
pub struct Probe {
    child: std::process::Child,
    answer: File,
    heard: Vec<u8>,
}

impl Probe {
    /// Starts `about` of a program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(program: &Program, config: &Path) -> io::Result<Self> {
        let mut child = program
            .command()
            .arg("about")
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let answer = File::from(OwnedFd::from(stdout));
        rustix::io::ioctl_fionbio(&answer, true)?;
        Ok(Self {
            child,
            answer,
            heard: Vec::new(),
        })
    }

    /// What it has answered; None while it has not.
    pub fn poll(&mut self) -> Option<Result<About, String>> {
        let mut part = [0; 4096];
        loop {
            match self.answer.read(&mut part) {
                Ok(0) => return Some(understand(&self.heard)),
                Ok(length) => self
                    .heard
                    .extend_from_slice(part.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(error.to_string())),
            }
            if self.heard.len() > MAX_ANSWER {
                return Some(understand(&[]));
            }
        }
    }
}

fn understand(answer: &[u8]) -> Result<About, String> {
    let about: About = serde_json::from_slice(answer)
        .ok()
        .filter(|about: &About| about.program == "ringwall")
        .ok_or(
            "it is no ringwall, or one from before `ringwall upgrade`: restart the service with it instead",
        )?;
    let ours = About::this().supervision;
    if about.supervision != ours {
        return Err(format!(
            "ringwall {} needs a supervisor of its own time (it speaks version {}, this one {ours}): restart the service with it instead",
            about.version, about.supervision
        ));
    }
    match &about.refuses {
        Some(reason) => Err(format!(
            "ringwall {} refuses the configuration: {reason}",
            about.version
        )),
        None => Ok(about),
    }
}

impl AsFd for Probe {
    /// Readable when it says something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.answer.as_fd()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::*;

    fn answer(change: impl FnOnce(&mut About)) -> Vec<u8> {
        let mut about = About::this();
        change(&mut about);
        serde_json::to_vec(&about).unwrap()
    }

    #[test]
    fn only_a_ringwall_that_can_be_supervised_and_would_run_is_one() {
        assert_eq!(understand(&answer(|_| {})), Ok(About::this()));
        for (text, wrong) in [
            (b"".to_vec(), "no ringwall"),
            (b"hello\n".to_vec(), "no ringwall"),
            (answer(|it| it.program = "cat".into()), "no ringwall"),
            (answer(|it| it.supervision += 1), "restart the service"),
            (
                answer(|it| it.refuses = Some("gw.yaml: unknown key".into())),
                "gw.yaml: unknown key",
            ),
        ] {
            let error = understand(&text).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
        // Other layouts and messages are what upgrades are for, and what is new is not read.
        assert!(understand(&answer(|it| it.messages += 1)).is_ok());
        let more = String::from_utf8(answer(|_| {})).unwrap();
        assert!(understand(more.replacen('{', r#"{"new":1,"#, 1).as_bytes()).is_ok());
    }

    #[test]
    fn a_program_that_says_nothing_or_too_much_is_asked_without_waiting() {
        let ask = |path: &str| {
            Probe::start(
                &Program::of(File::open(path).unwrap(), path.into()),
                Path::new("x"),
            )
        };
        let outcome = |mut probe: Probe| {
            loop {
                let mut fds = [rustix::event::PollFd::new(&probe, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut fds, None).unwrap();
                if let Some(outcome) = probe.poll() {
                    return outcome;
                }
            }
        };
        for path in ["/bin/true", "/bin/echo", "/bin/yes"] {
            if Path::new(path).exists() {
                assert!(outcome(ask(path).unwrap()).unwrap_err().contains("no ringwall"));
            }
        }
        assert!(ask("/etc/passwd").is_err());
    }
}
