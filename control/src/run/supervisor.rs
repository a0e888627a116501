//! `ringwall run`: starts the dataplane and the control process, keeps both alive, ends both.

use std::{path::PathBuf, process::ExitCode};

/// Arguments of `ringwall run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Take policies from this folder of manifests, whatever the configuration says.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,
    /// Take policies from the API server of this kubeconfig, whatever the configuration says.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// Runs until SIGTERM or SIGINT. Status 2 where nothing was started because of bad configuration or a missing
/// interface, CPU or capability.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let _ = args;
    anyhow::bail!("`ringwall run` is not built yet")
}
