//! The log of the long-running processes, on standard error.

use std::io;

use tracing_subscriber::{EnvFilter, fmt};

/// Starts it: warnings unless `RUST_LOG` says otherwise, one JSON object per line with `RINGWALL_LOG_FORMAT=json`.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    // Fails where a log is running already: that one stays.
    let _ = match std::env::var("RINGWALL_LOG_FORMAT").as_deref() {
        Ok("json") => builder.json().try_init(),
        _ => builder
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .try_init(),
    };
}
