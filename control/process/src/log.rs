//! The log of the long-running processes, on standard error.

use std::{backtrace::Backtrace, io, panic};

use tracing_subscriber::{EnvFilter, fmt};

/// For the help of commands that log.
pub const HELP: &str = "\
Log, on standard error:
  RUST_LOG             log level, such as warn or ringwall=debug; default warn,ringwall=info:
                       one line per policy generation, starts and stops, and problems
  RINGWALL_LOG_FORMAT  json: one JSON object per line, including the banner on standard output";

/// What is logged unless `RUST_LOG` says otherwise: each generation, beginnings and ends, and what is wrong.
pub const DEFAULT: &str = "warn,ringwall=info";

/// Starts it: one JSON object per line with `RINGWALL_LOG_FORMAT=json`. Panics go there, too.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    // Fails where a log is running already: that one stays.
    let _ = if is_json() {
        builder.json().try_init()
    } else {
        builder
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .try_init()
    };
    panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let backtrace = Backtrace::capture();
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            backtrace = %backtrace,
            "{panic}; please report it"
        );
    }));
}

/// Whether everything that is said is to be JSON.
pub fn is_json() -> bool {
    std::env::var("RINGWALL_LOG_FORMAT").is_ok_and(|format| format == "json")
}
