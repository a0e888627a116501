//! `ringwall matrix`.

use std::process::ExitCode;

use super::{ClusterArgs, Output};

/// Arguments of `ringwall matrix`.
#[derive(Clone, Debug, clap::Args)]
pub struct MatrixArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) fn run(args: &MatrixArgs, output: Output) -> anyhow::Result<ExitCode> {
    let _ = (&args.cluster, output);
    anyhow::bail!("`ringwall matrix` is not built yet")
}
