//! `ringwall preflight`: what can be known before a start. For now, the MTUs that pods need.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use ringwall_config::{Config, InterfaceKind, InterfaceSelect, Role};
use ringwall_dataplane::port::MAX_MTU;
use serde_json::{Map, Value, json};

use crate::Output;

/// What `--help` says besides the options.
pub(crate) const HELP: &str = "\
Pods' packets have to fit into the network's together with the headers of the tunnel
that they travel in: fragments of tunnel packets drop at a gateway. One row for each
interface of the configuration, or for each MTU given.

Examples:
  ringwall preflight --config ringwall.yaml
  ringwall preflight --mtu 1500,9001 -o json

Exit status: 0 fine, 1 the two ends of a wire have different MTUs, or an MTU is more than a
gateway or the interface's driver can carry, 2 bad input.";

/// Arguments of `preflight`.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub struct PreflightArgs {
    /// Configuration: take the MTU of each of its interfaces from this machine
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// MTU of a network, in bytes; more with commas
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(576..=65535))]
    mtu: Vec<u32>,
}

/// Ways from node to node, and the bytes that each puts around a pod's packet. IP in IP: RFC 2003, 2473. VXLAN: RFC 7348, Ethernet
/// inside. Geneve: RFC 8926, the same without options. GRE: RFC 2784, IP inside. Flannel's `udp`: IP in UDP. WireGuard: 32 bytes of
/// its own. IPsec: what Flannel reserves for ESP.
const OVERHEADS: [(&str, u32); 12] = [
    ("none", 0),
    ("ipip", 20),
    ("ipip6", 40),
    ("vxlan", 50),
    ("vxlan6", 70),
    ("geneve", 50),
    ("geneve6", 70),
    ("gre", 24),
    ("flannel-udp", 28),
    ("wireguard", 60),
    ("wireguard6", 80),
    ("ipsec", 77),
];

/// The largest packet of a pod that fits into a network, by way; over IPv6 where the name ends so.
fn pods_mtu(network: u32) -> impl Iterator<Item = (&'static str, u32)> {
    OVERHEADS
        .into_iter()
        .map(move |(way, bytes)| (way, network.saturating_sub(bytes)))
}

struct Row {
    interface: Option<String>,
    mtu: u32,
}

/// Runs the command.
pub(crate) fn run(args: &PreflightArgs, output: Output) -> anyhow::Result<ExitCode> {
    let mut rows: Vec<Row> = args
        .mtu
        .iter()
        .map(|mtu| Row {
            interface: None,
            mtu: *mtu,
        })
        .collect();
    let mut problems = Vec::new();
    if let Some(file) = &args.config {
        let config = Config::load(file).map_err(|error| anyhow::anyhow!("{error}"))?;
        for interface in &config.interfaces {
            // Patterns are for pods' own interfaces, which come and go.
            let InterfaceSelect::Name(name) = &interface.select else {
                continue;
            };
            // What ringwall makes itself does not exist yet.
            if interface.kind == Some(InterfaceKind::Host) {
                continue;
            }
            rows.push(Row {
                mtu: mtu_of(name)?,
                interface: Some(name.clone()),
            });
        }
        problems = unequal_wires(&config, &rows);
    }
    problems.extend(rows.iter().filter_map(unserved));
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => {
            for Row { interface, mtu } in &rows {
                let pods: Map<String, Value> = pods_mtu(*mtu)
                    .map(|(way, bytes)| (way.to_owned(), bytes.into()))
                    .collect();
                writeln!(
                    out,
                    "{}",
                    json!({"interface": interface, "mtu": mtu, "pods": pods})
                )?;
            }
            for problem in &problems {
                writeln!(out, "{}", json!({"problem": problem}))?;
            }
        }
        Output::Human => {
            write!(out, "{:<16}  {:>5}", "NETWORK", "MTU")?;
            for (way, _) in OVERHEADS.iter().skip(1) {
                write!(out, "  {:>width$}", way.to_uppercase(), width = way.len().max(5))?;
            }
            writeln!(out)?;
            for Row { interface, mtu } in &rows {
                write!(out, "{:<16}  {mtu:>5}", interface.as_deref().unwrap_or("-"))?;
                for (way, bytes) in pods_mtu(*mtu).skip(1) {
                    write!(out, "  {bytes:>width$}", width = way.len().max(5))?;
                }
                writeln!(out)?;
            }
            for problem in &problems {
                writeln!(out, "{problem}")?;
            }
        }
    }
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn mtu_of(interface: &str) -> anyhow::Result<u32> {
    let file = format!("/sys/class/net/{interface}/mtu");
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!("there is no interface {interface} here: run this on the gateway, or give --mtu")
    })?;
    text.trim().parse().with_context(|| format!("read {file}"))
}

/// Why no port can have an MTU: for any, or for this machine's interface.
fn unserved(row: &Row) -> Option<String> {
    let Row { interface, mtu } = row;
    let subject = match interface {
        Some(name) => format!("interface {name}: MTU {mtu}"),
        None => format!("MTU {mtu}"),
    };
    if *mtu > MAX_MTU {
        return Some(format!(
            "{subject} is more than a gateway carries: lower it to {MAX_MTU}"
        ));
    }
    #[cfg(feature = "afxdp")]
    if let Some(name) = interface
        && *mtu > ringwall_appliance::MAX_SINGLE_MTU
        && let Ok(known) = ringwall_bpf::inspect(std::path::Path::new(""), name)
        && known.multi_buffer == Some(false)
    {
        return Some(format!(
            "{subject}, but its driver does not list `rx-sg` among its xdp-features, so XDP cannot take jumbo frames: lower it \
             to {}, or use another device",
            ringwall_appliance::MAX_SINGLE_MTU
        ));
    }
    None
}

/// What comes in by one end of a wire and is too big for the other drops without an answer: a wire sends none.
fn unequal_wires(config: &Config, rows: &[Row]) -> Vec<String> {
    let Role::Wire(wires) = &config.role else {
        return Vec::new();
    };
    let mtu = |name: &str| {
        rows.iter()
            .find(|row| row.interface.as_deref() == Some(name))
            .map(|row| row.mtu)
    };
    wires
        .iter()
        .filter_map(|wire| {
            let [one, two] = wire.interfaces.each_ref().map(|end| mtu(end).unwrap_or_default());
            (one != two).then(|| {
                format!(
                    "wire {}: {} has an MTU of {one}, {} one of {two}; larger packets than the smaller one drop as too-big, \
                     without an answer: make them equal",
                    wire.name, wire.interfaces[0], wire.interfaces[1]
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // in tests a failed unwrap is the failure

    use super::{Row, pods_mtu, unserved};

    #[test]
    fn an_mtu_that_no_port_can_have_is_named() {
        let row = |interface: Option<&str>, mtu| Row {
            interface: interface.map(str::to_owned),
            mtu,
        };
        assert_eq!(unserved(&row(None, 9216)), None);
        assert_eq!(unserved(&row(None, 1500)), None);
        let said = unserved(&row(None, 9217)).unwrap();
        assert_eq!(said, "MTU 9217 is more than a gateway carries: lower it to 9216");
        let said = unserved(&row(Some("lan0"), 65535)).unwrap();
        assert!(said.starts_with("interface lan0: MTU 65535 is more"), "{said}");
    }

    /// The table that users know, and those of docs/mtu.md.
    #[test]
    fn the_documented_table_is_what_is_computed() {
        let of = |network: u32, way: &str| {
            pods_mtu(network)
                .find(|(name, _)| *name == way)
                .map(|(_, mtu)| mtu)
        };
        for (network, ipip, vxlan) in [
            (1500, 1480, 1450),
            (9000, 8980, 8950),
            (1460, 1440, 1410),
            (9001, 8981, 8951),
            (1450, 1430, 1400),
        ] {
            assert_eq!(
                (of(network, "ipip"), of(network, "vxlan")),
                (Some(ipip), Some(vxlan))
            );
        }
        let wanted = [
            ("flannel-udp", 1472),
            ("wireguard", 1440),
            ("wireguard6", 1420),
            ("vxlan6", 1430),
            ("ipsec", 1423),
        ];
        for (way, mtu) in wanted {
            assert_eq!(of(1500, way), Some(mtu), "{way}");
        }
        let documented = include_str!("../../../docs/mtu.md");
        for network in [1500, 9000, 1460, 9001, 1450] {
            let cells: Vec<String> = pods_mtu(network).map(|(_, mtu)| mtu.to_string()).collect();
            let row = format!("| {} |", cells.join(" | "));
            assert!(documented.contains(&row), "docs/mtu.md has no line {row}");
        }
    }
}
