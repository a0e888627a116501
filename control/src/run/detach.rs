//! `ringwall detach`: takes everything off the machine that ringwall put there.

use std::{path::PathBuf, process::ExitCode};

/// Arguments of `ringwall detach`.
#[derive(Clone, Debug, clap::Args)]
pub struct DetachArgs {
    /// Configuration file of the instance to take off.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Removes pins, programs, the host port and runtime files. Fine when there is nothing to remove.
pub fn run(args: &DetachArgs) -> anyhow::Result<ExitCode> {
    let _ = args;
    anyhow::bail!("`ringwall detach` is not built yet")
}
