//! `ringwall query`.

use std::process::ExitCode;

use super::{ClusterArgs, Output};

/// Arguments of `ringwall query`.
#[derive(Clone, Debug, clap::Args)]
pub struct QueryArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) fn run(args: &QueryArgs, output: Output) -> anyhow::Result<ExitCode> {
    let _ = (&args.cluster, output);
    anyhow::bail!("`ringwall query` is not built yet")
}
