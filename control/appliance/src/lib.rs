//! The running appliance: `ringwall run` starts and supervises the control process and the dataplane process.
//!
//! * [`plan`] from configuration to ports, workers and places; changes nothing.
//! * [`supervisor`] `ringwall run`: both children, restarts, signals; [`children`], [`stop_signal`] and [`expedited`] below it.
//! * [`upgrade`] to another program, under traffic; [`about`] what a program is.
//! * [`dataplane`] the hidden `ringwall dataplane`: ports, sockets, workers, watchdog; [`ports`]
//!   makes interfaces ready, [`changes`] keeps the record of what was changed on the machine, and takes it back.
//! * [`pod_guard`] guards new pods' interfaces at once; [`port_numbers`] are reused; [`pod_networks`] tell the XDP programs where pods are.
//! * [`netlink`], [`kernel_state`], [`kernel_forwarding`] and [`kernel_sync`]: the kernel's links, addresses, routes and neighbours,
//!   read, kept up to date and translated for the workers.
//! * [`network_namespace`] tells the one that a record is of from others.
//! * [`node`] is what a node with `datapath: kernel` has instead of ports: the kernel's own path, guarded.
//! * [`snapshot_server`] receives snapshots and publishes them to the workers; [`last_snapshot`] keeps one on disk.
//! * [`detach`] the command of the same name.
#![deny(unsafe_code)]

pub mod about;
pub mod changes;
pub mod children;
pub mod dataplane;
pub mod detach;
pub mod expedited;
mod flow_table;
mod flows;
pub mod kept_table;
pub mod kernel_forwarding;
pub mod kernel_state;
pub mod kernel_sync;
pub mod last_snapshot;
pub mod netfilter;
pub mod netlink;
pub mod network_namespace;
pub mod node;
pub mod plan;
pub mod pod_guard;
pub mod pod_networks;
pub mod port_numbers;
pub mod ports;
pub mod quarantine;
pub mod runtime;
pub mod snapshot_server;
pub mod stations;
pub mod stop_signal;
pub mod supervisor;
pub mod upgrade;
pub mod worker_thread;
mod xfrm;

pub use ringwall_xsk::MAX_SINGLE_MTU;

use std::{io, io::Write, os::unix::fs::PermissionsExt, path::Path};

use ringwall_config::Config;

/// Reads the configuration; the error says file, line and key.
fn load_config(path: &Path) -> anyhow::Result<Config> {
    Ok(Config::load(path)?)
}

/// Makes a directory that only root can enter; control opens it for its own group.
fn make_private_dir(path: &Path) -> anyhow::Result<()> {
    Ok(ringwall_process::confine::make_folder(path, 0o700)?)
}

/// Replaces a file by one rename, so that a reader sees the old content or the new, whenever power fails.
fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let mut file = std::fs::File::create(&next)?;
    // Whatever the umask: control, of the folder's group, reads it.
    file.set_permissions(std::fs::Permissions::from_mode(0o640))?;
    file.write_all(content)?;
    file.sync_data()?;
    std::fs::rename(&next, path)
}
