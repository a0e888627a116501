//! `ringwall status`: what runs, in which generation, and where every frame went.

use std::{path::PathBuf, process::ExitCode};

/// Arguments of `ringwall status`.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    /// Configuration file of the running instance.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Asks the control process, or the dataplane where that is away. Status 2 where nothing runs.
pub fn run(args: &StatusArgs, json: bool) -> anyhow::Result<ExitCode> {
    let _ = (args, json);
    anyhow::bail!("`ringwall status` is not built yet")
}
