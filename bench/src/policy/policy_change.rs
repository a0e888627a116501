//! In this process: policies that bring words of their own come and go, members of an address set change, and what tiers cost.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use ipnet::{IpNet, Ipv4Net};
use ringwall_compile::{Budget, Compiler, EpochKey};
use ringwall_dataplane::classify::{Generation, Image, Snapshot};
use ringwall_policy::{
    Action, AddressSet, Cluster, Conditions, DEFAULT_TIER, NamedPort, Namespace, NetworkPolicy, Object,
    ObjectKey, Operator, Order, Peer, Pod, PodSelection, PolicyKind, PortMatch, Protocol, Requirement, Rule,
    Selector, Tier, TierDefault, TieredPolicy, TieredRule,
};
use ringwall_prove::Checker;

use super::{
    Options, Size, cluster,
    report::{Report, Target},
};
use crate::figures::Figures;

/// Longest time for the rounds of one kind of change.
const LIMIT: Duration = Duration::from_secs(40);
/// Pods, in as many namespaces as there are, that have what few pods have.
const FEW: usize = 200;
/// Members of the address set.
pub(super) const MEMBERS: u32 = 10_000;
/// On few pods.
const RARE_KEY: &str = "bench.example/rare";
/// On every pod.
const COMMON_KEY: &str = "bench.example/common";
/// On few namespaces.
const RARE_NAMESPACE_KEY: &str = "bench.example/tenant";
/// A port name of few pods.
const PORT_NAME: &str = "bench";

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// A state that is followed as control and dataplane follow it.
struct Followed {
    cluster: Cluster,
    compiler: Compiler,
    checker: Checker,
    generation: u64,
    image: Image,
    /// The dataplane's, which gets deltas.
    adopted: Snapshot,
}

/// What one change took, in milliseconds.
struct Taken {
    compile: f64,
    prove: f64,
    all: f64,
    incremental: bool,
    whole: bool,
}

impl Followed {
    fn of(cluster: Cluster) -> anyhow::Result<Self> {
        let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
        let compiled = compiler.update(&cluster, Generation(1))?;
        let snapshot = Arc::new(Snapshot::from_image(&compiled.image));
        let mut checker = Checker::new();
        checker
            .full(&cluster, &snapshot)
            .map_err(|difference| anyhow!("the proof fails: {difference:?}"))?;
        Ok(Self {
            adopted: Snapshot::open(&compiled.image.to_bytes())?,
            image: compiled.image,
            cluster,
            compiler,
            checker,
            generation: 1,
        })
    }

    /// Compiles, proves and hands over the state as it is now.
    fn take(&mut self) -> anyhow::Result<Taken> {
        self.generation += 1;
        let start = Instant::now();
        let compiled = self.compiler.update(&self.cluster, Generation(self.generation))?;
        let compile = millis(start);
        let snapshot = Arc::new(Snapshot::from_image(&compiled.image));
        let proving = Instant::now();
        let proof = self
            .checker
            .changed(&self.cluster, &snapshot)
            .map_err(|difference| anyhow!("the proof fails: {difference:?}"))?;
        let prove = millis(proving);
        let delta = compiled
            .incremental
            .then(|| compiled.image.delta_since(&self.image));
        self.adopted = match delta.flatten() {
            Some(delta) => self.adopted.apply(&delta)?,
            None => Snapshot::open(&compiled.image.to_bytes())?,
        };
        let all = millis(start);
        self.image = compiled.image;
        Ok(Taken {
            compile,
            prove,
            all,
            incremental: compiled.incremental,
            whole: proof.whole,
        })
    }
}

/// Adds what was measured of one kind of change.
fn add(report: &mut Report, what: String, target: Target, taken: &[Taken]) -> anyhow::Result<()> {
    let median = |of: &dyn Fn(&Taken) -> f64| {
        Figures::of(taken.iter().map(of).collect(), "ms").map_or(0.0, |figures| figures.median())
    };
    let note = format!(
        "compile {:.2}, proof {:.2}; {} compiled and {} proven in full",
        median(&|it| it.compile),
        median(&|it| it.prove),
        taken.iter().filter(|it| !it.incremental).count(),
        taken.iter().filter(|it| it.whole).count(),
    );
    let all = taken.iter().map(|it| it.all).collect();
    report.add("policy-change", what, target, Figures::of(all, "ms"), note)
}

fn requirement(key: &str, operator: Operator) -> Selector {
    Selector {
        requirements: vec![Requirement {
            key: key.to_owned(),
            operator,
        }],
    }
}

fn has(key: &str, value: &str) -> Selector {
    requirement(key, Operator::In(BTreeSet::from([value.to_owned()])))
}

/// A policy of a namespace with one ingress rule.
fn policy(namespace: &str, subjects: Selector, peer: Peer, ports: Option<Vec<PortMatch>>) -> NetworkPolicy {
    NetworkPolicy {
        key: ObjectKey {
            namespace: namespace.to_owned(),
            name: "bench".to_owned(),
        },
        uid: "bench".to_owned(),
        subjects,
        ingress: Some(vec![Rule {
            peers: Some(vec![peer]),
            ports,
        }]),
        egress: None,
        types_written: true,
        answer: None,
        faults: Vec::new(),
    }
}

fn block(cidr: &str) -> anyhow::Result<Peer> {
    Ok(Peer::Block {
        cidr: cidr.parse()?,
        except: Vec::new(),
    })
}

/// Adds the labels and port names that no policy names yet.
fn with_words(cluster: &mut Cluster) {
    let pods: Vec<Arc<Pod>> = cluster.pods.values().cloned().collect();
    let every = (pods.len() / FEW).max(1);
    for (number, pod) in pods.iter().enumerate() {
        let mut pod = Pod::clone(pod);
        let zone = ["a", "b", "c"][number % 3];
        pod.labels.insert(COMMON_KEY.to_owned(), zone.to_owned());
        if number % every == 0 {
            pod.labels.insert(RARE_KEY.to_owned(), "a".to_owned());
            pod.named_ports.push(NamedPort {
                name: PORT_NAME.to_owned(),
                protocol: Protocol::Tcp,
                number: 9000,
            });
        }
        cluster.insert(Object::Pod(pod));
    }
    let namespaces: Vec<Arc<Namespace>> = cluster.namespaces.values().cloned().collect();
    let every = (namespaces.len() / 10).max(1);
    for namespace in namespaces.iter().step_by(every) {
        let mut namespace = Namespace::clone(namespace);
        namespace
            .labels
            .insert(RARE_NAMESPACE_KEY.to_owned(), "a".to_owned());
        cluster.insert(Object::Namespace(namespace));
    }
}

/// Policies that come and go, by what is new with them.
pub(super) fn words(options: &Options, size: Size, report: &mut Report) -> anyhow::Result<()> {
    let mut cluster = cluster::decoded(&cluster::synthetic(size, false)?)?;
    with_words(&mut cluster);
    let subject = cluster
        .pods
        .values()
        .find(|pod| pod.labels.contains_key(RARE_KEY) && !pod.host_network)
        .context("no pod has the rare label")?;
    let namespace = subject.key.namespace.clone();
    let app = "app.kubernetes.io/name";
    let own = has(app, subject.labels.get(app).context("a pod without its name")?);
    let mut followed = Followed::of(cluster)?;
    let pods = |pods: Selector| Peer::Pods {
        namespaces: None,
        pods,
    };
    let of_namespaces = |namespaces: Selector| Peer::Pods {
        namespaces: Some(namespaces),
        pods: Selector::default(),
    };
    let p99 = match size {
        Size::Large => Target::P99(50.0),
        _ => Target::None,
    };
    type Make<'a> = Box<dyn Fn(usize) -> anyhow::Result<NetworkPolicy> + 'a>;
    let kinds: Vec<(&str, Target, Make<'_>)> = vec![
        (
            "nothing new",
            Target::None,
            Box::new(|_| Ok(policy(&namespace, own.clone(), pods(own.clone()), None))),
        ),
        (
            "a label key of 200 pods",
            p99,
            Box::new(|_| {
                let key = requirement(RARE_KEY, Operator::Exists);
                Ok(policy(&namespace, has(RARE_KEY, "a"), pods(key), None))
            }),
        ),
        (
            "a label key of every pod",
            Target::None,
            Box::new(|_| {
                let key = has(COMMON_KEY, "b");
                Ok(policy(&namespace, has(COMMON_KEY, "a"), pods(key), None))
            }),
        ),
        (
            "a namespace label key of ten namespaces",
            p99,
            Box::new(|_| {
                let peer = of_namespaces(has(RARE_NAMESPACE_KEY, "a"));
                Ok(policy(&namespace, own.clone(), peer, None))
            }),
        ),
        (
            "a port name of 200 pods",
            p99,
            Box::new(|_| {
                let named = PortMatch::Named {
                    protocol: Protocol::Tcp,
                    name: PORT_NAME.to_owned(),
                };
                Ok(policy(
                    &namespace,
                    own.clone(),
                    pods(own.clone()),
                    Some(vec![named]),
                ))
            }),
        ),
        (
            "a block outside",
            p99,
            Box::new(|round| {
                let cidr = format!("198.18.{}.{}/32", round / 250, 1 + round % 250);
                Ok(policy(&namespace, own.clone(), block(&cidr)?, None))
            }),
        ),
        (
            "a block with a node's pods",
            p99,
            Box::new(|round| {
                let cidr = format!("10.0.{round}.0/24");
                Ok(policy(&namespace, own.clone(), block(&cidr)?, None))
            }),
        ),
        (
            "a block with every pod",
            Target::None,
            Box::new(|round| {
                let cidr = ["10.0.0.0/8", "0.0.0.0/0"][round % 2];
                Ok(policy(&namespace, own.clone(), block(cidr)?, None))
            }),
        ),
    ];
    for (what, target, make) in kinds {
        let (mut came, mut went) = (Vec::new(), Vec::new());
        let began = Instant::now();
        for round in 0..options.changes {
            let policy = make(round)?;
            let reference = Object::NetworkPolicy(policy.clone())
                .reference()
                .context("a policy without a name")?;
            followed.cluster.insert(Object::NetworkPolicy(policy));
            came.push(followed.take()?);
            followed.cluster.remove(&reference);
            went.push(followed.take()?);
            if began.elapsed() > LIMIT {
                break;
            }
        }
        let words = size.words();
        add(
            report,
            format!("policy comes, new: {what}; {words}"),
            target,
            &came,
        )?;
        add(
            report,
            format!("policy goes, last with: {what}; {words}"),
            target,
            &went,
        )?;
    }
    Ok(())
}

/// A policy of the whole cluster.
pub(super) fn global(name: &str, tier: &str, order: u16, rules: Vec<TieredRule>) -> TieredPolicy {
    TieredPolicy {
        uid: name.to_owned(),
        egress: Some(rules),
        ..TieredPolicy::new(
            PolicyKind::GlobalNetworkPolicy,
            name,
            tier,
            Order::of_priority(order),
        )
    }
}

/// The address of a member, spread as a list of hosts from everywhere is.
fn member(number: u32) -> anyhow::Result<IpNet> {
    let mixed = number.wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995;
    // 32.0.0.0/3 holds no network of the cluster.
    let address = Ipv4Addr::from(0x2000_0000 | mixed >> 3);
    Ok(Ipv4Net::new(address, 32)?.into())
}

/// A NetworkPolicy in each namespace under which all of its pods may send to other pods and, by TCP, from port 24 on.
pub(super) fn with_egress_policies(cluster: &mut Cluster) {
    let namespaces: Vec<String> = cluster.namespaces.keys().cloned().collect();
    for namespace in namespaces {
        let to_pods = Peer::Pods {
            namespaces: Some(Selector::default()),
            pods: Selector::default(),
        };
        let ports = PortMatch::Range {
            protocol: Protocol::Tcp,
            lo: 24,
            hi: u16::MAX,
        };
        let mut policy = policy(&namespace, Selector::default(), to_pods, None);
        policy.key.name = "bench-egress".to_owned();
        policy.egress = policy.ingress.take();
        policy.egress.get_or_insert_default().push(Rule {
            peers: None,
            ports: Some(vec![ports]),
        });
        cluster.insert(Object::NetworkPolicy(policy));
    }
}

/// Tiers that every pod passes through: `tiers` of them, with so many policies each.
pub(super) fn with_tiers(cluster: &mut Cluster, tiers: u16, policies: u16) -> anyhow::Result<()> {
    let apps: BTreeSet<String> = cluster
        .pods
        .values()
        .filter_map(|pod| pod.labels.get("app.kubernetes.io/name").cloned())
        .collect();
    let apps: Vec<String> = apps.into_iter().collect();
    for tier in 0..tiers {
        let name = format!("bench-{tier}");
        cluster.insert(Object::Tier(Tier {
            name: name.clone(),
            order: Order::of_priority(tier),
            default: TierDefault::Pass,
        }));
        for number in 0..policies {
            let app = &apps[usize::from(tier * policies + number) % apps.len()];
            let third = u8::try_from(number % 250)?;
            let rules = vec![
                TieredRule {
                    continues: false,
                    action: Action::Deny,
                    peers: Some(vec![block(&format!("203.{}.{third}.0/24", tier % 250))?]),
                    ports: None,
                    conditions: Conditions::NONE,
                },
                TieredRule {
                    continues: false,
                    action: Action::Pass,
                    peers: Some(vec![Peer::Pods {
                        namespaces: Some(Selector::default()),
                        pods: has("app.kubernetes.io/name", app),
                    }]),
                    ports: Some(vec![PortMatch::All(Protocol::Tcp)]),
                    conditions: Conditions::NONE,
                },
                TieredRule {
                    continues: false,
                    action: Action::Deny,
                    peers: None,
                    ports: Some(vec![PortMatch::Range {
                        protocol: Protocol::Tcp,
                        lo: 23,
                        hi: 23,
                    }]),
                    conditions: Conditions::NONE,
                },
            ];
            let mut policy = global(&format!("bench-{tier}-{number}"), &name, number, rules);
            // One of a tier is for everybody, the others for an application.
            if number > 0 {
                policy.subjects = vec![PodSelection {
                    namespaces: Selector::default(),
                    pods: has("app.kubernetes.io/name", app),
                }];
            }
            cluster.insert(Object::Tiered(policy));
        }
    }
    Ok(())
}

/// One member of an address set comes or goes at a time; every pod's egress is denied to them.
pub(super) fn members(options: &Options, size: Size, report: &mut Report) -> anyhow::Result<()> {
    let mut cluster = cluster::decoded(&cluster::synthetic(size, false)?)?;
    let mut members: AddressSet = (0..MEMBERS).map(member).collect::<Result<_, _>>()?;
    let set = |cluster: &mut Cluster, members: &AddressSet| {
        // As a source hands it on that put it together anew.
        let members: AddressSet = members.iter().copied().collect();
        cluster.set_addresses("feed", Some(&members));
    };
    set(&mut cluster, &members);
    let rule = |action, peers| TieredRule {
        continues: false,
        action,
        peers,
        ports: None,
        conditions: Conditions::NONE,
    };
    let rules = vec![
        rule(Action::Deny, Some(vec![Peer::Addresses("feed".to_owned())])),
        rule(Action::Pass, None),
    ];
    cluster.insert(Object::Tiered(global("feed", DEFAULT_TIER, 10, rules)));
    let mut followed = Followed::of(cluster)?;
    let (mut came, mut went) = (Vec::new(), Vec::new());
    let began = Instant::now();
    for round in 0..options.changes as u32 {
        members.insert(member(MEMBERS + round)?);
        set(&mut followed.cluster, &members);
        came.push(followed.take()?);
        members.remove(&member(round)?);
        set(&mut followed.cluster, &members);
        went.push(followed.take()?);
        if began.elapsed() > LIMIT {
            break;
        }
    }
    let words = size.words();
    let p99 = match size {
        Size::Large => Target::P99(10.0),
        _ => Target::None,
    };
    add(
        report,
        format!("one of {MEMBERS} members of an address set comes; {words}"),
        p99,
        &came,
    )?;
    add(
        report,
        format!("one of {MEMBERS} members of an address set goes; {words}"),
        p99,
        &went,
    )
}
