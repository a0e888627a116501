//! `ringwall check`.

use std::process::ExitCode;

use super::{ClusterArgs, Output};

/// Arguments of `ringwall check`.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) fn run(args: &CheckArgs, output: Output) -> anyhow::Result<ExitCode> {
    let _ = (&args.cluster, output);
    anyhow::bail!("`ringwall check` is not built yet")
}
