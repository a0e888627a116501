//! Traffic that passes before any policy.

use ipnet::IpNet;

use crate::{
    config::ClusterNetworks,
    problem::Problem,
    raw::{self, Networks},
};

/// The most entries that the kernel's program looks through.
pub(crate) const MAX_ENTRIES: usize = 32;

/// Traffic from one network to another, and its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailsafeEntry {
    /// Who begins.
    pub from: IpNet,
    /// With whom; of the same family.
    pub to: IpNet,
    /// IP protocol number; every protocol where None.
    pub protocol: Option<u8>,
    /// First and last destination port; every port where None, and always so without a protocol.
    pub ports: Option<(u16, u16)>,
}

/// Every pair of networks of a family that a rule names, with each run of neighbouring ports.
pub(crate) fn failsafe(
    raw: Option<&raw::Failsafe>,
    cluster: &ClusterNetworks,
    problems: &mut Vec<Problem>,
) -> Vec<FailsafeEntry> {
    let mut entries = Vec::new();
    for (index, rule) in raw.iter().flat_map(|raw| &raw.allow).enumerate() {
        let path = |key: &str| format!("failsafe.allow[{index}].{key}");
        let protocol = match rule.protocol.as_deref() {
            None => None,
            Some("TCP") => Some(6),
            Some("UDP") => Some(17),
            Some("SCTP") => Some(132),
            Some(other) => {
                problems.push(
                    Problem::new(path("protocol"), format!("`{other}` is no protocol with ports"))
                        .help("write TCP, UDP or SCTP, or remove the key for every protocol"),
                );
                continue;
            }
        };
        if rule.ports.is_some() && protocol.is_none() {
            problems.push(
                Problem::new(path("ports"), "ports without a protocol")
                    .help("add `protocol: TCP`, UDP or SCTP"),
            );
        }
        let runs = match rule.ports.as_deref() {
            None => vec![None],
            Some([]) => {
                problems.push(
                    Problem::new(path("ports"), "empty, so that the rule lets nothing through")
                        .help("list ports, or remove the key for every port"),
                );
                continue;
            }
            Some(ports) => runs(ports).into_iter().map(Some).collect(),
        };
        let from = networks(&rule.from, path("from"), cluster, problems);
        let to = networks(&rule.to, path("to"), cluster, problems);
        let before = entries.len();
        for from in &from {
            for to in to
                .iter()
                .filter(|to| to.addr().is_ipv4() == from.addr().is_ipv4())
            {
                entries.extend(runs.iter().map(|ports| FailsafeEntry {
                    from: *from,
                    to: *to,
                    protocol,
                    ports: *ports,
                }));
            }
        }
        if before == entries.len() && !from.is_empty() && !to.is_empty() {
            problems.push(
                Problem::new(path("to"), "no network is of the same family as one of `from`")
                    .help("give IPv4 and IPv4, or IPv6 and IPv6"),
            );
        }
    }
    if entries.len() > MAX_ENTRIES {
        problems.push(
            Problem::new(
                "failsafe.allow",
                format!(
                    "{} pairs of networks and runs of ports; at most {MAX_ENTRIES} fit",
                    entries.len()
                ),
            )
            .help("name fewer or wider networks"),
        );
    }
    entries
}

fn networks(
    named: &Networks,
    path: String,
    cluster: &ClusterNetworks,
    problems: &mut Vec<Problem>,
) -> Vec<IpNet> {
    let list = match named {
        Networks::Listed(list) => list.iter().map(IpNet::trunc).collect(),
        Networks::Named(name) => match name.as_str() {
            "podCIDRs" => cluster.pod_cidrs.clone(),
            "nodeCIDRs" => cluster.node_cidrs.clone(),
            "serviceCIDRs" => cluster.service_cidrs.clone(),
            other => {
                problems.push(
                    Problem::new(path, format!("`{other}` is no list of networks"))
                        .help("write nodeCIDRs, podCIDRs, serviceCIDRs, or networks in brackets"),
                );
                return Vec::new();
            }
        },
    };
    if list.is_empty() {
        problems.push(
            Problem::new(path, "holds no network, so that the rule lets nothing through")
                .help("fill the list in `cluster`, or write networks in brackets"),
        );
    }
    list
}

/// Neighbouring ports joined.
fn runs(ports: &[u16]) -> Vec<(u16, u16)> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => runs.push((port, port)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_ports_are_one_run() {
        assert_eq!(
            runs(&[443, 80, 81, 82, 80, 65535]),
            [(80, 82), (443, 443), (65535, 65535)]
        );
        assert_eq!(runs(&[]), []);
    }
}
