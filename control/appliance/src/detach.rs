//! `ringwall detach`: takes everything off the machine that ringwall put there.

use std::{collections::BTreeSet, fs::File, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use ringwall_messages::{
    CONTROL_SOCKET, DATAPLANE_SOCKET, SUPERVISION_FILE, SUPERVISOR_SOCKET, cni::CNI_SOCKET,
};
use ringwall_process::confine::CONTROL_FOLDER;
use rustix::fs::FlockOperation;

use super::{
    changes::{self, Changes},
    kept_table,
    kernel_state::KernelState,
    netlink::Netlink,
    node::containers::CONTAINERS_FILE,
    ports::remove_empty,
};

/// Arguments of `ringwall detach`.
#[derive(Clone, Debug, clap::Args)]
pub struct DetachArgs {
    /// Configuration file of the instance to remove
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Removes pins, programs, the host port and runtime files. Fine when there is nothing to remove.
///
/// # Errors
/// It runs, it ran in another network namespace (nothing is changed then), or something could not be taken off.
pub fn run(args: &DetachArgs, json: bool) -> anyhow::Result<ExitCode> {
    ringwall_process::log::start();
    let config = super::load_config(&args.config)?;
    // Held to the end: a `run` that starts meanwhile would lose what is taken off here.
    let lock = File::open(config.runtime_dir.join("run.lock"));
    if let Ok(lock) = &lock
        && rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_err()
    {
        bail!("`{}` is running: stop `ringwall run` first", config.name);
    }
    changes::may_detach_here(&config.state_dir)?;
    let pins = config.bpffs.join("ringwall").join(&config.name);
    let mut netlink = Netlink::open()?;
    let mut view = KernelState::default();
    view.set_links(&netlink.links()?);

    // The ports that left pins, and those of the configuration (whose guard may be left without a pin).
    let mut ports: BTreeSet<String> = view
        .links
        .values()
        .map(|link| link.name.clone())
        .filter(|name| config.interface(name).is_some())
        .collect();
    ports.extend(ringwall_bpf::pinned_ports(&pins));
    let mut failed = Vec::new();
    for port in &ports {
        if let Err(error) = ringwall_bpf::detach(&pins, port) {
            failed.push(error.to_string());
        }
    }
    if let Err(error) = ringwall_bpf::node::detach(&pins) {
        failed.push(error.to_string());
    }
    remove_empty(&pins);

    if let Err(error) = netlink.forget_managed() {
        failed.push(error.to_string());
    }
    // Whether it is on record or not: it would hold pods' interfaces for ever.
    if let Err(error) = kept_table::remove(&kept_table::table_name(&config.name)) {
        failed.push(error.to_string());
    }
    if config.state_dir.exists() {
        let mut changes = Changes::open(&config.state_dir)?;
        failed.extend(changes.take_back(0, |_| true));
        failed.extend(changes.of_another_version());
        if failed.is_empty() {
            changes.remove()?;
        }
    }
    if !failed.is_empty() {
        bail!("not everything could be taken off:\n{}", failed.join("\n"));
    }
    let of_control = config.runtime_dir.join(CONTROL_FOLDER);
    remove_file(&of_control.join(CONTROL_SOCKET))?;
    remove_dir(&of_control);
    for name in [
        CONTROL_SOCKET,
        DATAPLANE_SOCKET,
        SUPERVISOR_SOCKET,
        SUPERVISION_FILE,
        CNI_SOCKET,
        CONTAINERS_FILE,
        "run.lock",
    ] {
        remove_file(&config.runtime_dir.join(name))?;
    }
    super::flow_table::remove_all_but(&config.runtime_dir, None)?;
    remove_dir(&config.runtime_dir);
    if json {
        println!("{}", serde_json::json!({ "name": config.name, "detached": true }));
    } else {
        println!(
            "{}: nothing of ringwall is on this machine's interfaces any more",
            config.name
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn remove_file(path: &std::path::Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a directory where it is there and empty.
fn remove_dir(path: &std::path::Path) {
    let _ = std::fs::remove_dir(path);
}
