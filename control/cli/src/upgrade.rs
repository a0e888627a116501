//! The command `ringwall upgrade`.

use std::{fs::File, io::Write, os::fd::AsFd, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use ringwall_messages::{
    Connection, ProtocolError, SUPERVISOR_SOCKET, UpgradeAnswer, UpgradeOutcome, UpgradeRequest,
};
use serde_json::json;

use crate::status::forbidden;

/// For the help.
pub(crate) const HELP: &str = "\
The new control process compiles and proves the policies while the old one still runs, and the new dataplane tries them. Only
then does it replace the old dataplane, with the same interruption as a restart after a crash. A failure before that changes
nothing; a failure after it rolls back to the old version. The supervisor runs the new version from the next start of the service.

Exit status: 0 the new version enforces, 1 the upgrade was refused or rolled back, 2 it could not be requested.

Example: install the new program, then
  ringwall upgrade --config /etc/ringwall/gw.yaml";

/// Arguments of `ringwall upgrade`.
#[derive(Clone, Debug, clap::Args)]
pub struct UpgradeArgs {
    /// Configuration file of the running instance
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Program to upgrade, or downgrade, to; default: this program
    #[arg(long, value_name = "PATH")]
    pub program: Option<PathBuf>,
}

/// Asks the supervisor and says what it answers.
pub(crate) fn run(args: &UpgradeArgs, json: bool) -> anyhow::Result<ExitCode> {
    let config = ringwall_config::Config::load(&args.config)?;
    let path = match &args.program {
        Some(path) => std::path::absolute(path)?,
        None => std::env::current_exe().context("cannot find this program; name one with --program")?,
    };
    // The descriptor travels, so that both mean one file wherever the supervisor looks for names.
    let program = match &args.program {
        Some(path) => File::open(path),
        None => File::open("/proc/self/exe"),
    }
    .with_context(|| format!("cannot open {}", path.display()))?;
    if !program.metadata().is_ok_and(|it| it.is_file()) {
        bail!("{} is not a program", path.display());
    }
    let connection = match Connection::connect(&config.runtime_dir.join(SUPERVISOR_SOCKET)) {
        Ok(connection) => connection,
        Err(ProtocolError::Connect { error, .. }) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            bail!(forbidden(&config.name, &config.runtime_dir))
        }
        Err(error) => bail!(
            "{} is not running, or not under a supervisor that can be asked ({error}); start it with `ringwall run`",
            config.name
        ),
    };
    connection.send(&UpgradeRequest::Upgrade { path }, Some(program.as_fd()))?;
    let mut out = std::io::stdout().lock();
    loop {
        let answer = connection
            .receive::<UpgradeAnswer>()
            .context("the supervisor did not say how the upgrade ended; see `ringwall status`")?;
        match answer.message {
            UpgradeAnswer::Step { text } if json => writeln!(out, "{}", json!({ "step": text }))?,
            UpgradeAnswer::Step { text } => writeln!(out, "{text}")?,
            UpgradeAnswer::End { upgrade } => {
                if json {
                    serde_json::to_writer(&mut out, &upgrade)?;
                    writeln!(out)?;
                } else {
                    writeln!(out, "{}", upgrade)?;
                }
                return Ok(match upgrade.outcome {
                    UpgradeOutcome::Done => ExitCode::SUCCESS,
                    _ => ExitCode::from(1),
                });
            }
        }
        out.flush()?;
    }
}
