//! What keeps a node from being guarded: looked for before anything is changed, and named with what to do.

use std::{fs, path::Path};

use netlink_packet_route::link::LinkMessage;
use ringwall_bpf::{
    BpfError,
    node::{TcAttachment, filter_obstacles},
};

use super::inventory::Interface;
use crate::{
    netfilter::Netfilter,
    netlink::{Netlink, NetlinkError, name_of},
    xfrm,
};

/// Interfaces that only these have: they judge and translate by themselves, in places that the programs do not see.
const OTHER_ENGINES: [(&str, &str); 4] = [
    ("cilium_host", "Cilium"),
    ("antrea-gw0", "Antrea"),
    ("ovn-k8s-mp0", "OVN-Kubernetes"),
    ("weave", "Weave Net"),
];

/// The tables of IPVS, without which the file is not there.
const IPVS: &str = "/proc/net/ip_vs";
const IPVS_CONNTRACK: &str = "/proc/sys/net/ipv4/vs/conntrack";

/// Why it could not be told what is in the way.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The kernel could not be asked about interfaces and netfilter.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel could not be asked about programs.
    #[error(transparent)]
    Programs(#[from] BpfError),
}

/// What is in the way on this machine, each with what to do about it.
///
/// # Errors
/// The kernel could not be asked.
pub fn obstacles() -> Result<Vec<String>, PreflightError> {
    match look() {
        Err(PreflightError::Netlink(error))
            if error.errno() == Some(rustix::io::Errno::PERM.raw_os_error()) =>
        {
            Ok(vec![
                "this process has no right to guard the node: run ringwall as root".to_owned(),
            ])
        }
        found => found,
    }
}

fn look() -> Result<Vec<String>, PreflightError> {
    let links = Netlink::open()?.links()?;
    let mut found = other_engines(&links);
    found.extend(flowtables()?);
    if xfrm::has_policies()? {
        found.push(
            "IPsec policies (`ip xfrm policy`) encrypt packets before they leave an interface, so they cannot be judged there: use another overlay, or encrypt between the nodes outside of this machine".to_owned(),
        );
    }
    let read = |path: &str| fs::read_to_string(Path::new(path)).ok();
    found.extend(ipvs(read(IPVS).as_deref(), read(IPVS_CONNTRACK).as_deref()));
    let attachment = TcAttachment::of_kernel();
    // Bridges carry no programs.
    for interface in links
        .iter()
        .filter_map(Interface::of)
        .filter(|found| !found.bridge)
    {
        found.extend(filter_obstacles(attachment, interface.index, &interface.name)?);
    }
    Ok(found)
}

fn other_engines(links: &[LinkMessage]) -> Vec<String> {
    OTHER_ENGINES
        .into_iter()
        .filter(|(interface, _)| links.iter().any(|link| name_of(link) == Some(*interface)))
        .map(|(interface, engine)| {
            format!(
                "interface {interface}: {engine} has a datapath and policies of its own, and packets would be judged in the middle of it: use one or the other"
            )
        })
        .collect()
}

fn flowtables() -> Result<Vec<String>, NetlinkError> {
    Ok(Netfilter::open()?
        .flowtables()?
        .into_iter()
        .map(|(table, name)| {
            format!(
                "flowtable `{name}` of the nf_tables table `{table}` carries connections past connection tracking, so their packets cannot be judged: remove it (`nft delete flowtable`), and turn off what makes it"
            )
        })
        .collect())
}

/// `table` and `conntrack` are the contents of the files, if they are there.
fn ipvs(table: Option<&str>, conntrack: Option<&str>) -> Option<String> {
    let has_services = table.is_some_and(|table| {
        table.lines().any(|line| {
            ["TCP ", "UDP ", "SCTP ", "FWM "]
                .iter()
                .any(|kind| line.starts_with(kind))
        })
    });
    (has_services && conntrack.map(str::trim) != Some("1")).then(|| {
        "IPVS translates Services without connection tracking, so the pods behind them are not known: set `sysctl net.ipv4.vs.conntrack=1`, as kube-proxy does".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipvs_without_conntrack_is_in_the_way_if_it_has_services() {
        let head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n";
        let table = format!("{head}TCP  0A600001:01BB rr\n  -> 0A0A6402:192B Masq 1 0 0\n");
        assert!(ipvs(Some(&table), Some("0\n")).is_some());
        assert!(ipvs(Some(&table), None).is_some());
        assert!(ipvs(Some(&table), Some("1\n")).is_none());
        assert!(ipvs(Some(head), Some("0\n")).is_none());
        assert!(ipvs(None, None).is_none());
    }
}
