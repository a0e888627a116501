//! The traps of `docs/semantics.md` (T1 to T76): clusters with packets (`traps/cases.txt`), for the tests that ask them at every
//! level, and the table of what each level came to (`tests/TRAPS.md`).

use std::{collections::BTreeMap, fmt::Write as _, fs, net::IpAddr, path::Path};

use ringwall_dataplane::{
    addr::Addr,
    wire::{TcpFlags, build::Template},
};
use ringwall_evaluate::Service;
use ringwall_policy::Cluster;

use crate::{BedError, Result};

/// Namespaces, nodes and pods of every case. The account `s` is that of `web` and `x`.
const CLUSTER: &str = r"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}
{apiVersion: v1, kind: Namespace, metadata: {name: other, labels: {team: b}}}
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {zone: a}}, status: {addresses: [{type: InternalIP, address: 198.51.100.14}]}}
{apiVersion: v1, kind: Node, metadata: {name: n2, labels: {zone: b}}, status: {addresses: [{type: Hostname, address: 198.51.100.15}]}}
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {role: web, pcns.team: admin}}, spec: {nodeName: n1, serviceAccountName: s}, status: {podIPs: [{ip: 10.111.0.10}, {ip: 'fd00:111::a'}]}}
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {role: db, x: '1'}}, spec: {nodeName: n2, containers: [{name: c, ports: [{name: web, containerPort: 80}, {name: sql, containerPort: 5432}, {name: dns, containerPort: 53}, {name: dns, containerPort: 53, protocol: UDP}]}]}, status: {podIPs: [{ip: 10.111.0.11}, {ip: 'fd00:111::b'}]}}
{apiVersion: v1, kind: Pod, metadata: {name: x, namespace: other, labels: {role: web}}, spec: {nodeName: n2, serviceAccountName: s, containers: [{name: c, ports: [{name: web, containerPort: 8080, protocol: UDP}]}]}, status: {podIPs: [{ip: 10.111.0.12}, {ip: 'fd00:111::c'}]}}
{apiVersion: v1, kind: Pod, metadata: {name: agent, namespace: shop, labels: {role: agent}}, spec: {nodeName: n1, hostNetwork: true}, status: {podIP: 198.51.100.14}}
";

/// The ends of packets: name, address, and whose it is on a bed with the members of [`MEMBERS`].
const ENDS: [(&str, &str, &str); 12] = [
    ("web", "10.111.0.10", "shop/web"),
    ("web6", "fd00:111::a", "shop/web"),
    ("db", "10.111.0.11", "shop/db"),
    ("db6", "fd00:111::b", "shop/db"),
    ("x", "10.111.0.12", "other/x"),
    ("x6", "fd00:111::c", "other/x"),
    ("late", "10.111.0.13", "shop/late"),
    ("n1", "198.51.100.14", "n1"),
    ("n2", "198.51.100.15", "n2"),
    ("out", "203.0.113.10", "external"),
    ("out6", "2001:db8::10", "external"),
    // Of a Service, without translation.
    ("service", "172.17.0.10", "external"),
];

/// Pods and nodes of a bed on which the ends have their addresses, in the order of its plan; a node's name has no namespace.
pub const MEMBERS: [&str; 6] = ["shop/web", "shop/db", "other/x", "shop/late", "n1", "n2"];

/// What a packet does not show of a trap, and why.
const INSTEAD: [(u32, &str); 6] = [
    (31, "such an object is refused"),
    (35, "names of domains are not evaluated"),
    (36, "what a pod sends to itself does not leave it"),
    (54, "policies of host endpoints are not evaluated"),
    (56, "such an object is refused"),
    (
        76,
        "a worker with the defaults drops tunnels of pods as `encapsulation`; real packets meet `overlay.fromPods: allow`",
    ),
];

/// An end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketEnd {
    /// Its address.
    pub address: IpAddr,
    /// The member of a bed that has the address: one of [`MEMBERS`], or `external`.
    pub member: &'static str,
}

impl PacketEnd {
    fn named(name: &str) -> Option<Self> {
        let (_, address, member) = ENDS.iter().find(|(known, ..)| *known == name)?;
        Some(Self {
            address: address.parse().ok()?,
            member,
        })
    }
}

/// A packet and its verdict.
#[derive(Clone, Debug)]
pub struct Packet {
    /// As it is written.
    pub text: String,
    /// Who sends it.
    pub src: PacketEnd,
    /// Who is to have it.
    pub dst: PacketEnd,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; of ICMP and ICMPv6, 256 times the type plus the code. None for other protocols.
    pub port: Option<u16>,
    /// Whether policy allows it.
    pub allowed: bool,
    /// A worker with the defaults decides it without policy.
    pub unseen: bool,
}

impl Packet {
    /// None where a line describes something else.
    ///
    /// # Errors
    /// A packet that cannot be understood.
    fn read(text: &str) -> Result<Option<Self>> {
        let wrong = || BedError::other("traps/cases.txt", format!("cannot understand `{text}`"));
        let words: Vec<&str> = text.split(' ').collect();
        let [src, dst, service, verdict @ ("allow" | "deny"), ref more @ ..] = words[..] else {
            return Ok(None);
        };
        let (protocol, number) = match service.split_once('/') {
            Some((protocol, number)) => (protocol, Some(number.parse::<u16>().map_err(|_| wrong())?)),
            None => (service, None),
        };
        let (protocol, port) = match (protocol, number) {
            ("TCP", Some(_)) => (6, number),
            ("UDP", Some(_)) => (17, number),
            // An echo request, as a type and a code.
            ("ICMP", None) => (1, Some(8 << 8)),
            ("ICMPv6", None) => (58, Some(128 << 8)),
            ("IP", Some(number)) => (u8::try_from(number).map_err(|_| wrong())?, None),
            _ => return Err(wrong()),
        };
        let [src, dst] = [src, dst].map(|name| PacketEnd::named(name).ok_or_else(wrong));
        Ok(Some(Self {
            text: text.to_owned(),
            src: src?,
            dst: dst?,
            protocol,
            port,
            allowed: verdict == "allow",
            unseen: match more {
                [] => false,
                ["unseen"] => true,
                _ => return Err(wrong()),
            },
        }))
    }

    /// What is asked of the evaluator besides the ends, from a source port.
    pub fn service(&self, source_port: u16) -> Service {
        Service {
            protocol: self.protocol,
            port: self.port,
            source_port: self.has_ports().then_some(source_port),
        }
    }

    /// Whether it is TCP or UDP.
    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, 6 | 17)
    }

    /// The first packet of a flow between its ends, from a source port or with an identifier.
    pub fn frame(&self, own: u16) -> Vec<u8> {
        self.frame_by(
            &Template::new(Addr::from(self.src.address), Addr::from(self.dst.address)),
            own,
        )
    }

    /// As [`Self::frame`], with addresses and headers of a template.
    pub fn frame_by(&self, template: &Template, own: u16) -> Vec<u8> {
        let v4 = template.src.is_v4();
        let [high, low] = own.to_be_bytes();
        match (self.protocol, self.port) {
            (6, Some(port)) => template.tcp(own, port, TcpFlags::SYN, &[]),
            (17, Some(port)) => template.udp(own, port, b"x"),
            (1, _) if v4 => template.echo(own, true),
            (58, _) if !v4 => template.echo(own, true),
            (number, _) => template.ip(number, &[8, 0, 0, 0, high, low, 0, 1]),
        }
    }
}

/// A cluster with its packets.
#[derive(Clone, Debug, Default)]
pub struct Case {
    documents: Vec<String>,
    /// Namespaces whose objects the cluster lacks. A folder supplies them.
    pub forgotten: Vec<String>,
    /// Its packets.
    pub packets: Vec<Packet>,
}

impl Case {
    /// Adds an object, a packet or a namespace that is forgotten, as `cases.txt` has them.
    ///
    /// # Errors
    /// It cannot be understood.
    pub fn line(&mut self, line: &str) -> Result<()> {
        if let Some(packet) = Packet::read(line)? {
            self.packets.push(packet);
            return Ok(());
        }
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (name, spec) = rest.split_once(' ').unwrap_or((rest, ""));
        let (version, kind, namespace) = match kind {
            "-" => {
                self.documents.push(rest.to_owned());
                return Ok(());
            }
            "forget" => {
                self.forgotten.push(rest.to_owned());
                return Ok(());
            }
            "cnp" => ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", ""),
            "anp" => ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", ""),
            "np" => ("networking.k8s.io/v1", "NetworkPolicy", ", namespace: shop"),
            "gnp" => ("projectcalico.org/v3", "GlobalNetworkPolicy", ""),
            "calico" => ("projectcalico.org/v3", "NetworkPolicy", ", namespace: shop"),
            "staged" => ("projectcalico.org/v3", "StagedGlobalNetworkPolicy", ""),
            "tier" => ("projectcalico.org/v3", "Tier", ""),
            "set" => ("projectcalico.org/v3", "GlobalNetworkSet", ""),
            _ => {
                return Err(BedError::other(
                    "traps/cases.txt",
                    format!("cannot understand `{line}`"),
                ));
            }
        };
        self.documents.push(format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\nspec: {spec}"
        ));
        Ok(())
    }

    /// Its manifests. Those of an empty case are the cluster of every case.
    pub fn manifests(&self) -> Vec<&str> {
        let own = self.documents.iter().map(String::as_str);
        CLUSTER.trim().lines().chain(own).collect()
    }

    /// Takes the namespaces away that it forgets.
    pub fn forget_namespaces(&self, cluster: &mut Cluster) {
        for name in &self.forgotten {
            cluster.namespaces.remove(name);
        }
    }
}

/// The cases of every trap that has some.
///
/// # Errors
/// `cases.txt` cannot be understood.
pub fn cases() -> Result<BTreeMap<u32, Vec<Case>>> {
    let mut traps: BTreeMap<u32, Vec<Case>> = BTreeMap::new();
    let mut cases = None;
    for line in include_str!("traps/cases.txt").lines() {
        if line.starts_with('#') {
            continue;
        }
        if let Some(number) = line.strip_prefix('T').and_then(|number| number.parse().ok()) {
            cases = Some(traps.entry(number).or_insert_with(|| vec![Case::default()]));
            continue;
        }
        match (&mut cases, line) {
            (Some(cases), "") => cases.push(Case::default()),
            (Some(cases), line) => match cases.last_mut() {
                Some(case) => case.line(line)?,
                None => cases.push(Case::default()),
            },
            (None, line) => {
                return Err(BedError::other(
                    "traps/cases.txt",
                    format!("`{line}` is before every trap"),
                ));
            }
        }
    }
    Ok(traps)
}

/// A column of the table: how many packets of a trap were asked of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// By the evaluator and the compiled snapshot, which is proven.
    Proven,
    /// Packets of which a snapshot that decides otherwise is refused.
    Refused,
    /// By a worker in memory.
    Worker,
    /// On real packets.
    Real,
}

impl Level {
    const ALL: [Self; 4] = [Self::Proven, Self::Refused, Self::Worker, Self::Real];

    fn title(self) -> &'static str {
        match self {
            Self::Proven => "evaluated, compiled, proven",
            Self::Refused => "wrong snapshots refused",
            Self::Worker => "by a worker",
            Self::Real => "real packets",
        }
    }
}

const HEAD: &str = "# Traps, and what holds them

Each trap of [semantics](../docs/semantics.md) is a cluster with packets in `tests/src/traps/cases.txt`. Each packet is asked of the
reference evaluator, of the compiled snapshot and of a worker in memory; the checker proves the snapshot, and refuses one in which the packet is
decided the other way (`cargo test -p ringwall --no-default-features --test traps`). Then it is sent from its source's network namespace through a
running appliance between pods, nodes and a network outside, and either arrives unchanged, or the appliance says that it dropped it, and by
which policy and rule (`cargo test -p ringwall-testbed --test traps`, as root). Both tests fail if this table is not what they came to; `UPDATE=1`
writes it. Columns count packets.
";

/// Holds what a test came to against its columns of `tests/TRAPS.md`; with `UPDATE=1`, writes them first. `root` is the repository's.
///
/// # Errors
/// The table says something else, a trap is neither shown nor excused, or a file cannot be read or written.
pub fn hold_table(root: &Path, levels: &[Level], counts: &BTreeMap<(u32, Level), usize>) -> Result<()> {
    let file = root.join("tests/TRAPS.md");
    let written = fs::read_to_string(&file).unwrap_or_default();
    let others = cells(&written);
    let mut table = format!("{HEAD}\n| trap | what |");
    let end = format!("instead |\n{}|\n", "|---".repeat(Level::ALL.len() + 3));
    for level in Level::ALL {
        let _ = write!(table, " {} |", level.title());
    }
    let _ = write!(table, " {end}");
    for (number, text) in texts(root)? {
        let _ = write!(table, "| T{number} | {} |", text.replace('|', "\\|"));
        let instead = INSTEAD.iter().find(|(of, _)| *of == number).map(|(_, why)| *why);
        for level in Level::ALL {
            let other = || others.get(&(number, level)).cloned().unwrap_or_default();
            let cell = match (levels.contains(&level), counts.get(&(number, level))) {
                (false, _) => other(),
                (true, Some(count)) if *count > 0 || instead.is_some() => count.to_string(),
                (true, None) if instead.is_some() => String::new(),
                (true, _) => {
                    let why = format!(
                        "T{number} is not shown by {}, and nothing says why",
                        level.title()
                    );
                    return Err(BedError::other("tests/src/traps.rs", why));
                }
            };
            let _ = write!(table, " {cell} |");
        }
        let _ = writeln!(table, " {} |", instead.unwrap_or_default());
    }
    if std::env::var_os("UPDATE").is_some() {
        return fs::write(&file, &table)
            .map_err(|error| BedError::new(format!("cannot write {}", file.display()), error));
    }
    let first = written.lines().zip(table.lines()).find(|(is, was)| is != was);
    match (first, written == table) {
        (_, true) => Ok(()),
        (first, false) => Err(BedError::other(
            format!("{} is not what the test came to: {first:?}", file.display()),
            "run it with UPDATE=1",
        )),
    }
}

/// The counts of a table that is written.
fn cells(table: &str) -> BTreeMap<(u32, Level), String> {
    let mut cells = BTreeMap::new();
    for line in table.lines() {
        let row: Vec<&str> = line.split(" |").map(str::trim).collect();
        let number = row
            .first()
            .and_then(|first| first.strip_prefix("| T")?.parse().ok());
        let Some(number) = number else { continue };
        for (level, cell) in Level::ALL.into_iter().zip(row.iter().skip(2)) {
            cells.insert((number, level), (*cell).to_owned());
        }
    }
    cells
}

/// The text of every trap in `docs/semantics.md`.
fn texts(root: &Path) -> Result<BTreeMap<u32, String>> {
    let file = root.join("docs/semantics.md");
    let semantics = fs::read_to_string(&file)
        .map_err(|error| BedError::new(format!("cannot read {}", file.display()), error))?;
    let mut texts: BTreeMap<u32, String> = BTreeMap::new();
    let mut last = None;
    for line in semantics.lines() {
        let trap = line.strip_prefix("* **T").and_then(|rest| rest.split_once("** "));
        if let Some((Ok(number), text)) = trap.map(|(number, text)| (number.parse(), text)) {
            texts.insert(number, text.to_owned());
            last = Some(number);
        } else if let Some(text) = last
            .and_then(|last| texts.get_mut(&last))
            .filter(|_| line.starts_with("  "))
        {
            text.push(' ');
            text.push_str(line.trim());
        } else {
            last = None;
        }
    }
    match texts.keys().copied().eq(1..=76) {
        true => Ok(texts),
        false => Err(BedError::other(
            file.display().to_string(),
            "has not the traps T1 to T76",
        )),
    }
}
