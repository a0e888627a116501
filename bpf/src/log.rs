//! What libbpf says while it loads, kept for the error message instead of being printed.

use std::{
    io,
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use libbpf_rs::{PrintLevel, set_print};

use crate::{BpfError, error::wrap};

static TEXT: Mutex<String> = Mutex::new(String::new());
static TURN: Mutex<()> = Mutex::new(());

fn text() -> MutexGuard<'static, String> {
    TEXT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(_level: PrintLevel, line: String) {
    text().push_str(&line);
}

/// Keeps libbpf from printing to standard error, as it does until it is told otherwise.
pub(crate) fn quiet() {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        set_print(None);
    });
}

/// Collects libbpf's warnings until it is dropped; one at a time in a process.
pub(crate) struct Capture {
    _turn: MutexGuard<'static, ()>,
}

impl Capture {
    pub(crate) fn start() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        text().clear();
        set_print(Some((PrintLevel::Warn, keep)));
        Self { _turn: turn }
    }

    /// The warnings so far, on one line.
    pub(crate) fn text(&self) -> String {
        text()
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// An error of loading, with what libbpf said about it.
    pub(crate) fn explain(&self, action: &str, error: libbpf_rs::Error) -> BpfError {
        let text = self.text();
        let refused = error.kind() == libbpf_rs::ErrorKind::PermissionDenied;
        if text.is_empty() || (refused && !text.contains("PROG LOAD LOG")) {
            return wrap(action, error);
        }
        BpfError::System {
            action: action.to_owned(),
            source: io::Error::other(format!("{error:#}: {text}")),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        set_print(None);
    }
}
