//! The hidden `ringwall dataplane`: the process that owns the ports.

use std::{path::PathBuf, process::ExitCode};

/// Name of the flow table's file in the runtime directory.
pub const FLOWS_FILE: &str = "flows.bin";

/// Arguments of `ringwall dataplane`, which `ringwall run` starts.
#[derive(Clone, Debug, clap::Args)]
pub struct DataplaneArgs {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// End when standard input ends: the supervisor holds its other end.
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// Runs until SIGTERM, or until the supervisor is gone.
pub fn run(args: &DataplaneArgs) -> anyhow::Result<ExitCode> {
    let _ = args;
    anyhow::bail!("`ringwall dataplane` is not built yet")
}
