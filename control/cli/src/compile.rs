//! `ringwall compile`: the snapshot of a folder of manifests, as a file.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::Context;
use ringwall_dataplane::classify::Snapshot;
use serde_json::json;

use super::{
    ClusterArgs, Output,
    gaps::{Gaps, invalid_words},
    verify, write_whole,
};

/// Arguments of `ringwall compile`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Compiles the policies and writes the snapshot, the table that the dataplane
decides by, as one file. Prove a snapshot against manifests with
`ringwall check --snapshot`. The file appears only when it is complete.

Exit status: 0 if the file is written, 2 if the folder cannot be read, the
policies cannot be compiled or the file cannot be written.

Examples:
  ringwall compile --manifests ./cluster --out policy.img
  ringwall check --snapshot policy.img --manifests ./cluster")]
pub struct CompileArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// File to write; replaces an existing one
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(args: &CompileArgs, output: Output) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        args.out != Path::new("-"),
        "--out -: name a file, since the summary is on standard output"
    );
    let cluster = args.cluster.load()?;
    let begun = Instant::now();
    let image = verify::compiled(&cluster)?;
    let micros = begun.elapsed().as_micros() as u64;
    let snapshot = Snapshot::open(&image.bytes).context("the compiled snapshot does not validate")?;
    write_whole(&args.out, &image.bytes)?;

    let gaps = Gaps::of(&cluster);
    let (stats, sizes) = (&image.stats, snapshot.sizes());
    let hash: String = image.hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut out = io::stdout().lock();
    match output {
        Output::Human => {
            writeln!(
                out,
                "{}: {} bytes, {} policies, {} rules, {} endpoints, {} addresses, {} classes, {} rows; compiled in {:.1} ms",
                args.out.display(),
                stats.bytes,
                stats.policies,
                stats.rules,
                stats.endpoints,
                stats.hosts,
                stats.classes,
                stats.rows,
                micros as f64 / 1e3
            )?;
            writeln!(
                out,
                "a lookup reads at most {} cache lines for an address and {} for a direction; hash {hash}",
                sizes.worst_identify, sizes.worst_judge
            )?;
            for line in [gaps.incomplete_words(), invalid_words(&gaps.invalid())]
                .into_iter()
                .flatten()
            {
                writeln!(out, "{line}")?;
            }
        }
        Output::Json => writeln!(
            out,
            "{}",
            json!({
                "file": args.out,
                "hash": hash,
                "bytes": stats.bytes,
                "policies": stats.policies,
                "rules": stats.rules,
                "selectors": stats.selectors,
                "blocks": stats.blocks,
                "endpoints": stats.endpoints,
                "hosts": stats.hosts,
                "cohorts": stats.cohorts,
                "classes": stats.classes,
                "rows": stats.rows,
                "worst_identify": sizes.worst_identify,
                "worst_judge": sizes.worst_judge,
                "incomplete": cluster.unevaluated_kinds,
                "invalid": gaps.invalid(),
                "micros": micros,
            })
        )?,
    }
    Ok(ExitCode::SUCCESS)
}
