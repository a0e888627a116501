//! The hidden `ringwall about`: what a supervisor has to know of a program before it starts it.

use std::{io::Write, path::PathBuf, process::ExitCode};

use ringwall_messages::{RELEASE, SUPERVISION_VERSION, VERSION};
use serde::{Deserialize, Serialize};

use super::plan::Plan;

/// Arguments of `ringwall about`.
#[derive(Clone, Debug, clap::Args)]
pub struct AboutArgs {
    /// Configuration file that it would run with
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What a program is. Read by supervisors of any version: nothing that is there now may change its meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// `ringwall`.
    pub program: String,
    /// Its version.
    pub version: String,
    /// [`SUPERVISION_VERSION`]: only a supervisor of the same can start it.
    pub supervision: u32,
    /// Version of the messages between control and dataplane.
    pub messages: u32,
    /// Layout of snapshots.
    pub snapshots: u32,
    /// Layout of the flow table: another one does not take flows over.
    pub flows: u32,
    /// Why it would not run with the configuration; None where it would.
    #[serde(default)]
    pub refuses: Option<String>,
}

impl About {
    /// What this program is.
    pub fn this() -> Self {
        Self {
            program: "ringwall".to_owned(),
            version: RELEASE.to_owned(),
            supervision: SUPERVISION_VERSION,
            messages: VERSION,
            snapshots: ringwall_dataplane::classify::LAYOUT_VERSION,
            flows: ringwall_dataplane::flow::LAYOUT_VERSION,
            refuses: None,
        }
    }
}

/// Prints it as JSON.
pub fn run(args: &AboutArgs) -> anyhow::Result<ExitCode> {
    let plan = |config| anyhow::Ok(Plan::make(&super::load_config(config)?)?);
    let about = About {
        refuses: args
            .config
            .as_ref()
            .and_then(|config| plan(config).err())
            .map(|error| ringwall_process::whole_message(&error)),
        ..About::this()
    };
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &about)?;
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}
