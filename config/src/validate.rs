//! From what a file says to what the appliance can do.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use serde_saphyr::Error as YamlError;

use crate::{
    config::{
        ClusterNetworks, Config, Conntrack, Cpus, Interface, InterfaceSelect, OverlayNetwork, Role, RxQueues,
        Source, SourceKind, Telemetry, Timeouts, Tunnels, UdpTunnel, Umem, Wire, Workers,
    },
    cpus::{CpuId, parse_cpu_list},
    failsafe::failsafe,
    outline::Outline,
    places::places,
    problem::{ConfigError, Problem},
    quantity::Period,
    raw::{
        self, AntiSpoofing, CpuSet, Datapath, FailMode, InterfaceKind, Kind, Mode, OnDeadline, QueueCount,
        Raw, Side, Verification, VerifyInFull,
    },
    support::unsupported,
};

/// Longest interface name in Linux, in bytes.
const MAX_INTERFACE_NAME: usize = 15;

/// How long a proof may take, unless said otherwise: several times what it takes with 150,000 pods.
const VERIFY_DEADLINE: Duration = Duration::from_secs(30);

/// Within what time a state has to be adopted, unless said otherwise.
const ADOPT_WITHIN: Duration = Duration::from_secs(30);

impl Config {
    /// Reads a configuration file. Relative paths in it start at the file's folder.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its place in the file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| {
            ConfigError::new(
                &name,
                vec![
                    Problem::new("", format!("cannot be read: {error}"))
                        .help("check --config and the file's permissions"),
                ],
            )
        })?;
        let base = file.parent().unwrap_or(Path::new(""));
        Self::parse(&name, &text, base, |variable| std::env::var(variable).ok())
    }

    /// Reads a configuration from its text. `file` names it in messages, relative paths in it start at `base`,
    /// `environment` answers `${VARIABLE}` in `name`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(
        file: &str,
        text: &str,
        base: &Path,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let text: Arc<str> = text.into();
        let refused = |error: &YamlError, outline: Option<&Outline>| {
            ConfigError::new(
                file,
                vec![from_yaml(error.without_snippet(), file, &text, outline)],
            )
        };
        let outline = Outline::read(&text).map_err(|error| refused(&error, None))?;
        let raw: Raw = serde_saphyr::from_str(&text).map_err(|error| refused(&error, Some(&outline)))?;
        raw.validate(base, environment).map_err(|problems| {
            let mut problems: Vec<_> = problems
                .into_iter()
                .map(|problem| {
                    let position = outline.find(&problem.path);
                    let position = position.map(|at| (at.line() as usize, at.column() as usize));
                    problem.locate(file, &text, position)
                })
                .collect();
            problems.sort_by_key(|problem| problem.position);
            ConfigError::new(file, problems)
        })
    }
}

/// Words an error of the YAML reader.
fn from_yaml(error: &YamlError, file: &str, text: &Arc<str>, outline: Option<&Outline>) -> Problem {
    let mut position = error.location().filter(|at| at.line() > 0);
    let at = position
        .and_then(|at| outline?.path_at(at.line(), at.column()))
        .unwrap_or_default();
    let problem = match error {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            Problem::new(at, format!("unknown key `{field}`")).help(suggestion(field, expected))
        }
        YamlError::SerdeUnknownVariant {
            variant, expected, ..
        } => Problem::new(at, format!("unknown value `{variant}`")).help(suggestion(variant, expected)),
        YamlError::SerdeMissingField { field, .. } => {
            // The reader stands at the last key of the mapping that lacks one.
            let mapping = at.rsplit_once('.').map_or("", |(mapping, _)| mapping);
            position = outline.and_then(|outline| outline.find(mapping));
            let place = if mapping.is_empty() {
                String::new()
            } else {
                format!(" in `{mapping}`")
            };
            Problem::new(mapping, format!("the key `{field}` is missing{place}"))
                .help(format!("add `{field}:`"))
        }
        YamlError::DuplicateMappingKey { key, .. } => Problem::new(
            at,
            format!("the key `{}` stands here twice", key.as_deref().unwrap_or("?")),
        )
        .help("remove one of them"),
        other => {
            let text = other.render();
            // The position is said in its own place.
            let message = text.strip_prefix("error: ").unwrap_or(&text);
            let message = message.split(" at line ").next().unwrap_or(message);
            Problem::new(at, message.trim())
        }
    };
    problem.locate(
        file,
        text,
        position.map(|at| (at.line() as usize, at.column() as usize)),
    )
}

/// The nearest of the known words, and all of them.
fn suggestion(word: &str, known: &[&str]) -> String {
    let all = known.join(", ");
    let near = known
        .iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&word.to_lowercase(), &candidate.to_lowercase()),
                candidate,
            )
        })
        .min()
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3));
    match near {
        Some((_, candidate)) => format!("did you mean `{candidate}`? Known here: {all}"),
        None => format!("known here: {all}"),
    }
}

impl Raw {
    /// Checks everything that can be checked without looking at the machine.
    ///
    /// # Errors
    /// Every problem found, by path; positions are added by [`Config::parse`].
    pub fn validate(
        self,
        base: &Path,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, Vec<Problem>> {
        let mut problems = unsupported(&self);
        let name = name(&self, environment, &mut problems);
        let mut cluster = cluster(&self.cluster, &mut problems);
        let failsafe = failsafe(self.failsafe.as_ref(), &cluster, &mut problems);
        let source = source(&self.source, base, &mut problems);
        let workers = workers(&self.workers, &mut problems);
        let fail_mode = self.fail_mode.unwrap_or_default();
        let wires = wires(&self, fail_mode, &mut problems);
        cluster.places = places(&self, &mut problems);
        let interfaces = interfaces(&self, &mut problems);
        let tunnels = tunnels(self.overlay.as_ref(), &mut problems);
        let conntrack = conntrack(&self.conntrack, &mut problems);
        let umem = umem(&self.umem, &mut problems);
        let snapshot_budget = snapshot_budget(&self.snapshot, &mut problems);
        let telemetry = telemetry(&self.telemetry, &mut problems);

        sides(&self, &interfaces, &mut problems);

        let kernel_path = self.kind == Kind::Node;
        let hosts_pods = hosts_pods(&self);
        datapath(&self, &mut problems);
        if self.denied.rate == Some(0) {
            problems.push(
                Problem::new("denied.rate", "no packet would be answered")
                    .help("give a number from 1 on, or remove `denied`"),
            );
        }
        let routed = self.wires.is_none() && !kernel_path;
        if self.wires.is_some() && self.routing.is_some() {
            problems.push(
                Problem::new("routing", "a gateway is either wired or routed")
                    .help("remove `wires` or `routing`"),
            );
        }
        let has_host = interfaces
            .iter()
            .any(|interface| interface.kind == Some(InterfaceKind::Host));
        if routed && has_host && fail_mode == FailMode::Open {
            problems.push(
                Problem::new(
                    "failMode",
                    "`open` passes pod traffic to the kernel, whose routes lead back by the `host` interface",
                )
                .help("use `closed`, or remove the interface of kind `host`"),
            );
        }
        if has_host && name.len() > MAX_INTERFACE_NAME {
            problems.push(
                Problem::new("name", format!("longer than {MAX_INTERFACE_NAME} bytes, and it names the kernel's end of the `host` interface"))
                    .help("choose a shorter name"),
            );
        }
        let runtime_dir = self
            .runtime_dir
            .map_or_else(|| Path::new("/run/ringwall").join(&name), |dir| base.join(dir));
        let state_dir = self.state_dir.map_or_else(
            || Path::new("/var/lib/ringwall").join(&name),
            |dir| base.join(dir),
        );
        // A unix socket's path, with its NUL, has to fit sockaddr_un.
        if runtime_dir.join("dataplane.sock").as_os_str().len() > 107 {
            problems.push(
                Problem::new("runtimeDir", "too long for the sockets in it")
                    .help("use a path of at most 90 bytes"),
            );
        }
        let verify = match self.verify {
            Verification::Word(proof) => VerifyInFull {
                proof,
                deadline: None,
                on_deadline: OnDeadline::default(),
            },
            Verification::Full(verify) => verify,
        };
        if verify.deadline.is_some_and(|deadline| deadline.0.is_zero()) {
            problems.push(
                Problem::new("verify.deadline", "nothing is proven in no time")
                    .help("give it some seconds, or say `verify: off`"),
            );
        }
        match (source, workers, conntrack, telemetry) {
            (Some(source), Some(workers), Some(conntrack), Some(telemetry)) if problems.is_empty() => {
                Ok(Config {
                    kind: self.kind,
                    hosts_pods,
                    pod_start: self.pod_start.unwrap_or_default(),
                    untaint_node: self.untaint_node.unwrap_or_default(),
                    name,
                    mode: self.mode,
                    verify: verify.proof,
                    verify_deadline: verify.deadline.map_or(VERIFY_DEADLINE, |period| period.0),
                    on_deadline: verify.on_deadline,
                    snapshot_budget,
                    management: self.management.map(|management| management.interface),
                    cluster,
                    source,
                    workers,
                    interfaces,
                    role: match (kernel_path, routed) {
                        (true, _) => Role::KernelPath,
                        (_, true) => Role::Routed,
                        _ => Role::Wire(wires),
                    },
                    reverse_path: self
                        .routing
                        .map_or_else(Default::default, |routing| routing.reverse_path),
                    anti_spoofing: self.anti_spoofing,
                    tunnels,
                    fail_mode,
                    denied: self.denied.answer,
                    denied_rate: self.denied.rate.unwrap_or(ANSWERS_PER_SECOND),
                    failsafe,
                    conntrack,
                    umem,
                    telemetry,
                    control_user: self.control.user,
                    runtime_dir,
                    state_dir,
                    bpffs: self
                        .bpffs
                        .map_or_else(|| PathBuf::from("/sys/fs/bpf"), |dir| base.join(dir)),
                })
            }
            _ => Err(problems),
        }
    }
}

fn name(raw: &Raw, environment: impl Fn(&str) -> Option<String>, problems: &mut Vec<Problem>) -> String {
    let mut name = String::new();
    let mut rest = raw.name.as_str();
    while let Some((before, after)) = rest.split_once("${") {
        let Some((variable, after)) = after.split_once('}') else {
            problems.push(Problem::new("name", "`${` without `}`").help("write `${VARIABLE}`"));
            return raw.name.clone();
        };
        let Some(value) = environment(variable) else {
            problems.push(
                Problem::new("name", format!("the environment variable {variable} is not set"))
                    .help(format!("set {variable}, or write the name out")),
            );
            return raw.name.clone();
        };
        name.push_str(before);
        name.push_str(&value);
        rest = after;
    }
    name.push_str(rest);
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 63 || !name.chars().all(fits) || name.starts_with('.') {
        problems.push(
            Problem::new("name", format!("`{name}` cannot be a name"))
                .help("use 1 to 63 letters, digits, `-`, `_` and `.`, not beginning with `.`"),
        );
    }
    name
}

fn cluster(raw: &raw::Cluster, problems: &mut Vec<Problem>) -> ClusterNetworks {
    if raw.pod_cidrs.is_empty() {
        problems.push(
            Problem::new(
                "cluster.podCIDRs",
                "empty, so that no address could be known to be a pod's",
            )
            .help("list the pod networks of the cluster"),
        );
    }
    let lists = [
        ("podCIDRs", &raw.pod_cidrs),
        ("nodeCIDRs", &raw.node_cidrs),
        ("serviceCIDRs", &raw.service_cidrs),
    ];
    for (index, (name, list)) in lists.iter().enumerate() {
        for (other_name, other) in &lists[..index] {
            for (at, net) in list.iter().enumerate() {
                if let Some(twin) = other.iter().find(|twin| overlap(net, twin)) {
                    problems.push(
                        Problem::new(
                            format!("cluster.{name}[{at}]"),
                            format!("{net} overlaps {twin} of {other_name}"),
                        )
                        .help("an address belongs to pods, nodes or Services, never to two of them"),
                    );
                }
            }
        }
    }
    let masked = |list: &[IpNet]| list.iter().map(IpNet::trunc).collect();
    ClusterNetworks {
        pod_cidrs: masked(&raw.pod_cidrs),
        node_cidrs: masked(&raw.node_cidrs),
        service_cidrs: masked(&raw.service_cidrs),
        unknown_endpoints: raw.unknown_endpoints,
        places: Vec::new(),
    }
}

pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Answers per second to one sender of denied packets, by one worker.
const ANSWERS_PER_SECOND: u32 = 50;

/// How often a full list is compared with what was watched.
const FULL_LIST_EVERY: Duration = Duration::from_secs(60 * 60);

/// No more often: a list of a large cluster is hundreds of megabytes.
const LEAST_FULL_LIST_EVERY: Duration = Duration::from_secs(5 * 60);

fn source(raw: &raw::Source, base: &Path, problems: &mut Vec<Problem>) -> Option<Source> {
    let in_cluster = raw.in_cluster == Some(true);
    let kind = match (&raw.kubeconfig, in_cluster, &raw.manifests) {
        (Some(file), false, None) => SourceKind::Kubeconfig {
            file: base.join(file),
            context: raw.context.clone(),
        },
        (None, true, None) => SourceKind::InCluster,
        (None, false, Some(dir)) => SourceKind::Manifests { dir: base.join(dir) },
        (None, false, None) => {
            problems.push(
                Problem::new("source", "says nowhere to take policy from")
                    .help("give one of `kubeconfig: FILE`, `inCluster: true` and `manifests: DIR`"),
            );
            return None;
        }
        _ => {
            problems.push(
                Problem::new("source", "says more than one place to take policy from")
                    .help("keep one of `kubeconfig`, `inCluster` and `manifests`"),
            );
            return None;
        }
    };
    if raw.context.is_some() && raw.kubeconfig.is_none() {
        problems.push(
            Problem::new("source.context", "a context of no kubeconfig")
                .help("add `kubeconfig: FILE` or remove it"),
        );
    }
    let full_list_every = raw.full_list_every.map_or(FULL_LIST_EVERY, |period| period.0);
    if full_list_every < LEAST_FULL_LIST_EVERY {
        problems.push(
            Problem::new(
                "source.fullListEvery",
                "full lists would keep the API server busy",
            )
            .help("write 5m or more"),
        );
    }
    Some(Source {
        kind,
        stale_after: raw
            .stale_after
            .map_or(Duration::from_secs(15 * 60), |period| period.0),
        full_list_every,
        adopt_within: raw.adopt_within.map_or(ADOPT_WITHIN, |period| period.0),
        max_age: raw.max_age.map(|period| period.0),
        allow_no_pods: raw.allow_no_pods,
    })
}

fn workers(raw: &raw::Workers, problems: &mut Vec<Problem>) -> Option<Workers> {
    let cpus = match &raw.cpus {
        None => Cpus::Auto,
        Some(CpuSet::Text(text)) if text == "auto" => Cpus::Auto,
        Some(CpuSet::Number(cpu)) => Cpus::List(vec![CpuId(*cpu)]),
        Some(CpuSet::Numbers(numbers)) => {
            let set: std::collections::BTreeSet<_> = numbers.iter().copied().map(CpuId).collect();
            if set.is_empty() {
                problems.push(
                    Problem::new("workers.cpus", "an empty list").help("name at least one CPU, or `auto`"),
                );
                return None;
            }
            Cpus::List(set.into_iter().collect())
        }
        Some(CpuSet::Text(text)) => match parse_cpu_list(text) {
            Ok(list) => Cpus::List(list),
            Err(error) => {
                problems.push(Problem::new("workers.cpus", error.to_string()));
                return None;
            }
        },
    };
    let count = match raw.count {
        Some(0) => {
            problems.push(
                Problem::new("workers.count", "without a worker nothing is forwarded").help("use at least 1"),
            );
            return None;
        }
        Some(count) => NonZeroU16::new(count),
        None => None,
    };
    if let (Cpus::List(list), Some(count)) = (&cpus, count)
        && usize::from(count.get()) > list.len()
    {
        problems.push(
            Problem::new(
                "workers.count",
                format!(
                    "{count} workers on {} CPUs would stand in each other's way",
                    list.len()
                ),
            )
            .help("use at most one worker per CPU of `workers.cpus`"),
        );
    }
    Some(Workers {
        cpus,
        count,
        idle: raw.idle_policy,
    })
}

fn wires(raw: &Raw, fail_mode: FailMode, problems: &mut Vec<Problem>) -> Vec<Wire> {
    let mut wires = Vec::new();
    let mut names = BTreeMap::new();
    let mut ends = BTreeMap::new();
    if raw.wires.as_ref().is_some_and(Vec::is_empty) {
        problems.push(Problem::new("wires", "an empty list").help("list a wire, or remove the key to route"));
    }
    for (index, wire) in raw.wires.iter().flatten().enumerate() {
        let path = format!("wires[{index}]");
        if names.insert(&wire.name, index).is_some() {
            problems.push(Problem::new(
                format!("{path}.name"),
                format!("a second wire called `{}`", wire.name),
            ));
        }
        let [a, b] = wire.interfaces.as_slice() else {
            problems.push(
                Problem::new(format!("{path}.interfaces"), "a wire has two ends")
                    .help("list exactly two interfaces"),
            );
            continue;
        };
        for (end, name) in [a, b].into_iter().enumerate() {
            let path = format!("{path}.interfaces[{end}]");
            match raw
                .interfaces
                .iter()
                .find(|interface| interface.name.as_ref() == Some(name))
            {
                None => problems.push(
                    Problem::new(path.clone(), format!("`{name}` is not in `interfaces`"))
                        .help(format!("add `- {{name: {name}}}` there")),
                ),
                Some(interface) if interface.kind.is_some() => problems.push(
                    Problem::new(
                        path.clone(),
                        format!("`{name}` has a `kind`, which only routed interfaces have"),
                    )
                    .help("remove its `kind`"),
                ),
                Some(_) => {}
            }
            if let Some(other) = ends.insert(name.clone(), wire.name.clone()) {
                problems.push(
                    Problem::new(path, format!("`{name}` already is an end of `{other}`"))
                        .help("use each interface once"),
                );
            }
        }
        wires.push(Wire {
            name: wire.name.clone(),
            interfaces: [a.clone(), b.clone()],
            l2_protocols: wire.l2_protocols.clone(),
            fail_mode: wire.fail_mode.unwrap_or(fail_mode),
        });
    }
    wires
}

/// Whether pods' interfaces are ports of this machine, which is their node.
fn hosts_pods(raw: &Raw) -> bool {
    raw.kind == Kind::Gateway && raw.datapath == Some(Datapath::Afxdp)
}

/// A gateway forwards by itself; on a node the kernel does, and nothing is chosen that it chooses.
fn datapath(raw: &Raw, problems: &mut Vec<Problem>) {
    let mut refuse = |path: &str, why: &str, help: &str| problems.push(Problem::new(path, why).help(help));
    if raw.kind == Kind::Gateway {
        if matches!(raw.pod_start, Some(raw::PodStart::Attach | raw::PodStart::Hold)) {
            refuse(
                "podStart",
                "only a node can hold pods back",
                "remove it, or use `kind: Node`",
            );
        }
        if raw.untaint_node == Some(true) {
            refuse(
                "untaintNode",
                "a gateway is no node that pods are scheduled to",
                "remove it, or use `kind: Node`",
            );
        }
        if raw.datapath == Some(Datapath::Kernel) {
            refuse(
                "datapath",
                "a gateway forwards by itself",
                "use `datapath: afxdp`, or `kind: Node` to guard the kernel's own path",
            );
        }
        return;
    }
    if raw.datapath == Some(Datapath::Afxdp) {
        refuse(
            "datapath",
            "on a node the kernel forwards",
            "use `datapath: kernel`, or `kind: Gateway` if pods' interfaces are to be ports of ringwall",
        );
    }
    if raw.untaint_node == Some(true) && raw.source.manifests.is_some() {
        refuse(
            "untaintNode",
            "a folder of manifests has no node whose taint could be removed",
            "remove it, or take policy from an API server",
        );
    }
    if !raw.interfaces.is_empty() {
        refuse(
            "interfaces",
            "a node guards every interface of the machine",
            "remove the list, or use `kind: Gateway` with `datapath: afxdp` to take these interfaces over",
        );
    }
    if raw.wires.is_some() {
        refuse(
            "wires",
            "on a node the kernel forwards",
            "use `kind: Gateway` for wires",
        );
    }
    if raw.routing.is_some() {
        refuse(
            "routing",
            "on a node the kernel routes, and its rules are not read",
            "remove it",
        );
    }
    if !raw.cluster.places.is_empty() {
        refuse(
            "cluster.places",
            "on a node the kernel decides where networks are",
            "remove it",
        );
    }
}

fn interfaces(raw: &Raw, problems: &mut Vec<Problem>) -> Vec<Interface> {
    if raw.interfaces.is_empty() && raw.kind == Kind::Gateway {
        problems.push(Problem::new("interfaces", "an empty list").help("list the interfaces to take over"));
    }
    let mut seen = BTreeMap::new();
    let mut host = None;
    let mut interfaces = Vec::new();
    for (index, interface) in raw.interfaces.iter().enumerate() {
        let path = format!("interfaces[{index}]");
        let select = match (&interface.name, &interface.pattern) {
            (Some(name), None) => InterfaceSelect::Name(name.clone()),
            (None, Some(pattern)) => InterfaceSelect::Match(pattern.clone()),
            _ => {
                problems.push(
                    Problem::new(path, "needs either a `name` or a `match`")
                        .help("write `name: eth1` or `match: \"cali*\"`"),
                );
                continue;
            }
        };
        let text = select.as_str();
        let key = if interface.name.is_some() { "name" } else { "match" };
        if text.is_empty()
            || text.len() > MAX_INTERFACE_NAME
            || text.contains(['/', ' ', ':'])
            || text == "."
            || text == ".."
        {
            problems.push(
                Problem::new(
                    format!("{path}.{key}"),
                    format!("`{text}` cannot be an interface"),
                )
                .help(format!(
                    "interface names have 1 to {MAX_INTERFACE_NAME} bytes without `/`, `:` and spaces"
                )),
            );
        }
        if let Some(first) = seen.insert(text.to_owned(), index) {
            problems.push(
                Problem::new(
                    format!("{path}.{key}"),
                    format!("`{text}` already is interfaces[{first}]"),
                )
                .help("list each interface once"),
            );
        }
        if raw
            .management
            .as_ref()
            .is_some_and(|management| select.matches(&management.interface))
        {
            problems.push(
                Problem::new(
                    format!("{path}.{key}"),
                    format!("`{text}` is the management interface, which is never taken over"),
                )
                .help("remove it here, or correct `management.interface`"),
            );
        }
        let wired = raw
            .wires
            .iter()
            .flatten()
            .any(|wire| wire.interfaces.iter().any(|end| end == text));
        if raw.wires.is_some() && !wired {
            problems.push(
                Problem::new(format!("{path}.{key}"), format!("`{text}` is no end of a wire"))
                    .help("add it to `wires`, or remove it"),
            );
        }
        let kind = if raw.wires.is_some() {
            None
        } else {
            Some(interface.kind.unwrap_or(InterfaceKind::Uplink))
        };
        if kind == Some(InterfaceKind::Host) {
            if interface.pattern.is_some() {
                problems.push(
                    Problem::new(format!("{path}.match"), "the `host` interface needs a name")
                        .help("use `name`"),
                );
            }
            if let Some(first) = host.replace(index) {
                problems.push(
                    Problem::new(
                        format!("{path}.kind"),
                        format!("interfaces[{first}] already is the `host` interface"),
                    )
                    .help("there is one way to the kernel"),
                );
            }
            if interface.name.as_deref() == Some(&raw.name) {
                problems.push(
                    Problem::new(
                        format!("{path}.name"),
                        "the same as `name`, which is the kernel's end of the pair",
                    )
                    .help("choose another name for the judged end"),
                );
            }
        }
        if interface.mtu.is_some_and(|mtu| !(576..=9216).contains(&mtu)) {
            problems.push(Problem::new(format!("{path}.mtu"), "out of range").help("use 576 to 9216 bytes"));
        }
        if interface.zero_copy == raw::ZeroCopy::Require && interface.xdp_mode == raw::XdpMode::Generic {
            problems.push(
                Problem::new(
                    format!("{path}.zeroCopy"),
                    "`require` is impossible with `xdpMode: generic`",
                )
                .help("use `xdpMode: native`, or `zeroCopy: off`"),
            );
        }
        let rx_queues = match &interface.rx_queues {
            None => RxQueues::All,
            Some(QueueCount::Text(text)) if text == "all" => RxQueues::All,
            Some(QueueCount::Number(count)) if let Some(count) = NonZeroU16::new(*count) => {
                RxQueues::Count(count)
            }
            Some(_) => {
                problems.push(
                    Problem::new(format!("{path}.rxQueues"), "not a number of queues")
                        .help("use `all` or 1 and up"),
                );
                RxQueues::All
            }
        };
        interfaces.push(Interface {
            kind,
            side: interface.side.unwrap_or(match kind {
                Some(InterfaceKind::Pod) => Side::Pods,
                _ => Side::Any,
            }),
            rx_queues,
            xdp_mode: interface.xdp_mode,
            zero_copy: interface.zero_copy,
            mtu: interface.mtu,
            select,
        });
    }
    interfaces
}

/// A gateway has to know whose addresses are on which side of it: else everybody there can send as any pod, and with that
/// make answers of what was not asked.
fn sides(raw: &Raw, interfaces: &[Interface], problems: &mut Vec<Problem>) {
    if hosts_pods(raw) || raw.anti_spoofing == AntiSpoofing::Off {
        return;
    }
    for (index, (interface, written)) in interfaces.iter().zip(&raw.interfaces).enumerate() {
        let path = format!("interfaces[{index}]");
        let wrong_already = problems.iter().any(|problem| problem.path.starts_with(&path));
        if wrong_already || matches!(interface.kind, Some(InterfaceKind::Host | InterfaceKind::Pod)) {
            continue;
        }
        let help = "give it `side: inside`, `outside`, `pods` or `nodes`; `antiSpoofing: off` accepts `any`";
        if written.side.is_none() {
            let text = "its `side` is missing: whose addresses are there?";
            problems.push(Problem::new(path, text).help(help));
        } else if interface.side == Side::Any && raw.mode == Mode::Enforce {
            let text = "any source may come in here, pods' addresses too, and the mode is `enforce`";
            problems.push(Problem::new(format!("{path}.side"), text).help(help));
        }
    }
}

/// What the programs in the kernel have room for.
const MAX_TUNNEL_PORTS: usize = 16;

fn tunnels(raw: Option<&raw::Overlay>, problems: &mut Vec<Problem>) -> Tunnels {
    use UdpTunnel::{Flannel, Geneve, Vxlan};
    let default = raw::Overlay::default();
    let raw = raw.unwrap_or(&default);
    let mut kinds: Vec<(u16, UdpTunnel)> = Vec::new();
    for (key, kind, listed, usual) in [
        ("vxlanPorts", Vxlan, &raw.vxlan_ports, &[4789, 8472][..]),
        ("genevePorts", Geneve, &raw.geneve_ports, &[6081]),
        ("flannelPorts", Flannel, &raw.flannel_ports, &[8285]),
    ] {
        let is_unpacked = |port: &u16| raw.ports.as_ref().is_none_or(|ports| ports.contains(port));
        let ports: Vec<u16> = match listed {
            Some(listed) => listed.clone(),
            None => usual.iter().copied().filter(is_unpacked).collect(),
        };
        for port in ports {
            let taken = kinds.iter().any(|(other, of)| *other == port && *of != kind);
            if taken && listed.is_some() {
                let text = format!("UDP port {port} has another kind of tunnel already");
                problems.push(
                    Problem::new(format!("overlay.{key}"), text)
                        .help("a port has one kind: take it out of one list"),
                );
            } else if !taken {
                kinds.push((port, kind));
            }
        }
    }
    let mut ports = raw.ports.clone().unwrap_or_default();
    ports.extend(kinds.iter().map(|(port, _)| *port));
    ports.sort_unstable();
    ports.dedup();
    kinds.sort_unstable_by_key(|(port, _)| *port);
    kinds.dedup();
    if ports.len() > MAX_TUNNEL_PORTS {
        problems.push(
            Problem::new(
                "overlay.ports",
                format!("{} UDP ports of tunnels are too many", ports.len()),
            )
            .help(format!(
                "list at most {MAX_TUNNEL_PORTS}, those of the kinds included"
            )),
        );
    }
    if ports.contains(&0) {
        problems.push(Problem::new("overlay.ports", "0 is no UDP port").help("use 1 to 65535"));
    }
    let mut networks: Vec<OverlayNetwork> = Vec::new();
    for (index, raw::OverlayNetwork { vni, zone }) in raw.networks.iter().flatten().copied().enumerate() {
        let path = format!("overlay.networks[{index}].vni");
        if vni >= 1 << 24 {
            problems.push(Problem::new(path, format!("{vni} is out of range")).help("use 0 to 16777215"));
        } else if networks.iter().any(|other| other.vni == vni) {
            problems.push(
                Problem::new(path, format!("network {vni} is listed twice")).help("a network has one zone"),
            );
        } else {
            networks.push(OverlayNetwork { vni, zone });
        }
    }
    if raw.networks.as_ref().is_some_and(Vec::is_empty) {
        problems.push(
            Problem::new("overlay.networks", "no network could be used")
                .help("list the networks, or leave the key out to allow any"),
        );
    }
    Tunnels {
        allowed: raw.from_pods == raw::TunnelAction::Allow,
        ports,
        kinds,
        ip_in_ip: raw.ipip.unwrap_or(true),
        gre: raw.gre.unwrap_or(true),
        opaque_allowed: raw.opaque != raw::OpaqueTunnels::Deny,
        networks,
    }
}

fn conntrack(raw: &raw::Conntrack, problems: &mut Vec<Problem>) -> Option<Conntrack> {
    // 2^28 entries are 48 GiB.
    const RANGE: std::ops::RangeInclusive<u32> = 16_384..=268_435_456;
    let entries = raw.max_entries.unwrap_or(262_144);
    if !RANGE.contains(&entries) {
        problems.push(
            Problem::new("conntrack.maxEntries", format!("{entries} is out of range")).help(format!(
                "use {} to {}",
                RANGE.start(),
                RANGE.end()
            )),
        );
        return None;
    }
    let times = &raw.timeouts;
    let default = Timeouts::default();
    let mut time = |key: &str, value: Option<Period>, default: Duration| {
        let value = value.map_or(default, |period| period.0);
        if value < Duration::from_secs(1) {
            problems.push(
                Problem::new(format!("conntrack.timeouts.{key}"), "shorter than a second")
                    .help("use 1s or more"),
            );
        }
        value
    };
    let timeouts = Timeouts {
        tcp_opening: time("tcpOpening", times.tcp_opening, default.tcp_opening),
        tcp_established: time("tcpEstablished", times.tcp_established, default.tcp_established),
        tcp_closing: time("tcpClosing", times.tcp_closing, default.tcp_closing),
        udp_new: time("udpNew", times.udp_new, default.udp_new),
        udp_answered: time("udpAnswered", times.udp_answered, default.udp_answered),
        icmp: time("icmp", times.icmp, default.icmp),
        sctp: time("sctp", times.sctp, default.sctp),
        other: time("other", times.other, default.other),
    };
    Some(Conntrack {
        max_entries: NonZeroU32::new(entries)?,
        tcp_midstream: raw.tcp_midstream,
        tcp: raw.tcp,
        pickup_window: raw
            .pickup_window
            .map_or(Duration::from_secs(120), |period| period.0),
        timeouts,
    })
}

/// Bytes. The most is what one message to the dataplane may be.
fn snapshot_budget(raw: &raw::Snapshot, problems: &mut Vec<Problem>) -> u64 {
    let budget = raw.budget.map_or(512 << 20, |budget| budget.0);
    if !(1 << 20..=1 << 30).contains(&budget) {
        problems.push(Problem::new("snapshot.budget", "out of range").help("use 1MiB to 1GiB"));
    }
    budget
}

fn umem(raw: &raw::Umem, problems: &mut Vec<Problem>) -> Umem {
    if raw
        .frames_per_pod_port
        .is_some_and(|frames| !(256..=1 << 20).contains(&frames))
    {
        problems.push(Problem::new("umem.framesPerPodPort", "out of range").help("use 256 to 1048576"));
    }
    if raw.total.is_some_and(|total| total.0 < 1 << 20) {
        problems.push(Problem::new("umem.total", "less than 1 MiB holds no rings").help("use at least 1MiB"));
    }
    Umem {
        frames_per_pod_port: raw.frames_per_pod_port.and_then(NonZeroU32::new),
        total: raw.total.map(|total| total.0),
    }
}

fn telemetry(raw: &raw::Telemetry, problems: &mut Vec<Problem>) -> Option<Telemetry> {
    let mut listen = |key: &str, text: &str| {
        let address = match text.strip_prefix(':') {
            Some(port) => port
                .parse()
                .ok()
                .map(|port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
            None => text.parse().ok(),
        };
        if address.is_none() {
            problems.push(
                Problem::new(
                    format!("telemetry.{key}"),
                    format!("`{text}` is not an address to listen on"),
                )
                .help("write ADDRESS:PORT, such as `127.0.0.1:9469`, or `:9469` for every address"),
            );
        }
        address
    };
    Some(Telemetry {
        metrics_listen: match &raw.metrics_listen {
            Some(text) => listen("metricsListen", text)?,
            None => SocketAddr::from((Ipv4Addr::LOCALHOST, 9469)),
        },
        health_listen: match &raw.health_listen {
            Some(text) => Some(listen("healthListen", text)?),
            None => None,
        },
    })
}
