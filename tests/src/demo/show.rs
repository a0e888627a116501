//! How the demo speaks: colours and progress on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};

/// Standard output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Show {
    terminal: bool,
    colour: bool,
}

/// How a piece of text looks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look {
    /// A heading.
    Bold,
    /// Of less weight.
    Dim,
    /// As wanted.
    Good,
    /// Not as wanted.
    Bad,
    /// The firewall's own words.
    Accent,
}

impl Show {
    pub(super) fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self {
            terminal,
            colour: terminal && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// The text in a look, where there are colours.
    pub(super) fn paint(self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Bold => "1",
            Look::Dim => "2",
            Look::Good => "32",
            Look::Bad => "1;31",
            Look::Accent => "36",
        };
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A line.
    pub(super) fn line(self, text: &str) {
        let mut out = std::io::stdout().lock();
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        // Who does not listen misses nothing that matters.
        let _ = writeln!(out, "{clear}{text}");
    }

    /// What is being done, overwritten by the next line; only on a terminal.
    pub(super) fn progress(self, text: &str) {
        if self.terminal {
            let mut out = std::io::stdout().lock();
            let _ = write!(out, "\r\x1b[K{}", self.paint(Look::Dim, text));
            let _ = out.flush();
        }
    }

    /// A check mark or a cross.
    pub(super) fn mark(self, good: bool) -> String {
        match (good, self.terminal) {
            (true, true) => self.paint(Look::Good, "✓"),
            (false, true) => self.paint(Look::Bad, "✗"),
            (true, false) => "ok  ".to_owned(),
            (false, false) => "FAIL".to_owned(),
        }
    }
}
