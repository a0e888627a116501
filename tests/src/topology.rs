//! Pods, routers and the gateway between them.
//!
//! Routed: every pod's veth ends in the gateway, which owns the pods' gateway address, as Calico does it.
//!
//! ```text
//!   pod a ──┐
//!   pod b ──┤ gateway ├── uplink ── external
//!   pod c ──┘    │
//!              kernel of the host
//! ```
//!
//! Node: the same links, but the gateway's own kernel forwards, and the gateway is the node that the pods are on. Bridge: the pods' links
//! are ports of a bridge there, as flannel and the `bridge` plugin do it.
//!
//! Wire: the gateway is a bump between two routers; only what crosses it is judged.
//!
//! ```text
//!   pod a ── router ── (in) gateway (out) ── router ── pod c
//!   pod b ──┘                                   └───── external
//! ```

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use crate::{BedError, Result, netns::Netns, scratch::Scratch, serve::Servers};

/// The pods' network.
pub const POD_CIDR: &str = "10.111.0.0/16";
/// The pods' IPv6 network.
pub const POD_CIDR_V6: &str = "fd00:111::/48";
/// The gateway's own network, where the external client is.
pub const EXTERNAL_CIDR: &str = "192.0.2.0/24";
/// The external client.
pub const EXTERNAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The external client's IPv6 address.
pub const EXTERNAL_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// The gateway on the external network.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The gateway's IPv6 address on the external network.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// More addresses of the external client, behind its first one: inside and outside of the blocks that policies name.
pub const EXTERNAL_MORE: [Ipv4Addr; 6] = [
    Ipv4Addr::new(172, 17, 0, 10),
    Ipv4Addr::new(172, 17, 1, 10),
    Ipv4Addr::new(10, 0, 0, 10),
    Ipv4Addr::new(192, 168, 1, 5),
    Ipv4Addr::new(192, 168, 1, 7),
    Ipv4Addr::new(203, 0, 113, 10),
];
/// The gateway address of every pod.
const POD_GATEWAY: &str = "169.254.1.1";
/// The bridge of a node.
pub const BRIDGE: &str = "cni0";
/// Its addresses, which are the pods' gateways.
const BRIDGE_V4: &str = "10.111.0.1";
const BRIDGE_V6: &str = "fd00:111::1";

/// How packets cross the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// By routes.
    Routed,
    /// By a pair of ports.
    Wire,
    /// By the kernel, from pod to pod by routes.
    Node,
    /// By the kernel, from pod to pod by a bridge.
    Bridge,
}

impl Role {
    /// Whether the gateway is a node whose kernel forwards.
    pub fn is_node(self) -> bool {
        matches!(self, Role::Node | Role::Bridge)
    }
}

/// What a pod of the bed is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `namespace/name`; what its servers answer.
    pub name: String,
    /// TCP ports that it serves.
    pub tcp: Vec<u16>,
    /// UDP ports that it serves.
    pub udp: Vec<u16>,
    /// On a wire: whether it is on the outer end.
    pub outside: bool,
    /// Whether it is another node instead of a pod.
    pub node: bool,
}

impl Plan {
    /// A pod that serves HTTP on port 80 and an echo on UDP port 53.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            tcp: vec![80],
            udp: vec![53],
            outside: false,
            node: false,
        }
    }

    /// With more TCP ports.
    #[must_use]
    pub fn tcp(mut self, ports: &[u16]) -> Self {
        self.tcp.extend_from_slice(ports);
        self
    }

    /// Another node, with addresses of its own network ([`node_addresses`]).
    #[must_use]
    pub fn node(mut self) -> Self {
        self.node = true;
        self
    }

    /// On the outer end of a wire.
    #[must_use]
    pub fn outside(mut self) -> Self {
        self.outside = true;
        self
    }
}

/// A pod of the bed, a node beside the gateway, or the external client.
#[derive(Debug)]
pub struct Member {
    /// `namespace/name` of a pod, the name of a node, or `external`.
    pub name: String,
    /// Its namespace.
    pub ns: Arc<Netns>,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// The gateway's port that leads to it.
    pub port: String,
    /// On a wire: whether it is on the outer end.
    pub outside: bool,
    /// Whether it is another node instead of a pod.
    pub node: bool,
    _servers: Servers,
}

impl Member {
    /// Its address of a family.
    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}

/// A bed: namespaces, links, routes and servers. Gone when dropped.
#[derive(Debug)]
pub struct Bed {
    /// How packets cross the gateway.
    pub role: Role,
    /// The pods and nodes, in the order of the plan.
    pub pods: Vec<Member>,
    /// The external client, a server too.
    pub external: Member,
    /// Routers of a wire: inner, outer.
    pub routers: Vec<Arc<Netns>>,
    /// Where `ringwall run` lives.
    pub gateway: Arc<Netns>,
    /// Receive queues of each port.
    pub queues: u32,
    scratch: Scratch,
}

impl Bed {
    /// Builds a bed. `queues` is how many receive and transmit queues each port of the gateway gets.
    ///
    /// # Errors
    /// Not root, or the kernel refuses something; it says what.
    pub fn new(role: Role, plans: &[Plan], queues: u32) -> Result<Self> {
        let scratch = Scratch::new()?;
        let bpffs = scratch.path().join("bpf");
        for folder in [&bpffs, &scratch.path().join("manifests")] {
            fs::create_dir(folder)
                .map_err(|error| BedError::new(format!("cannot make {}", folder.display()), error))?;
        }
        let gateway = Arc::new(Netns::with_bpffs("gateway", &bpffs)?);
        let routers = match role {
            Role::Wire => vec![router("inner router")?, router("outer router")?],
            Role::Routed | Role::Node | Role::Bridge => Vec::new(),
        };
        if role.is_node() {
            gateway.sysctl("net/ipv4/ip_forward", "1")?;
            gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        }
        if role == Role::Bridge {
            bridge(&gateway)?;
        }
        let union = |ports: fn(&Plan) -> &[u16], more: &[u16]| -> Vec<u16> {
            let all: BTreeSet<u16> = plans.iter().flat_map(ports).chain(more).copied().collect();
            all.into_iter().collect()
        };
        let (tcp, udp) = (
            union(|plan| &plan.tcp, &[80, 443]),
            union(|plan| &plan.udp, &[53]),
        );
        let external = external(role, &gateway, &routers, &tcp, &udp, queues)?;
        let pods = std::thread::scope(|scope| {
            let threads: Vec<_> = plans
                .iter()
                .enumerate()
                .map(|(index, plan)| {
                    let (gateway, routers) = (&gateway, &routers);
                    scope.spawn(move || pod(role, gateway, routers, index, plan, queues))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        if role == Role::Wire {
            wire(&gateway, &routers, &pods, queues)?;
        }
        Ok(Self {
            role,
            pods,
            external,
            routers,
            gateway,
            queues,
            scratch,
        })
    }

    /// A folder for what belongs to this bed.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Has the gateway's kernel translate by rules of nft, as kube-proxy does.
    ///
    /// # Errors
    /// `nft` refuses them; its words are in the error.
    pub fn translate(&self, rules: &str) -> Result<()> {
        let file = self.folder().join("rules.nft");
        let failed = |error: io::Error| BedError::new("nft of the gateway", error);
        fs::write(&file, rules).map_err(failed)?;
        let mut nft = Command::new("nft");
        nft.arg("-f").arg(&file);
        let output = self.gateway.output(nft)?;
        if output.status.success() {
            Ok(())
        } else {
            Err(failed(io::Error::other(String::from_utf8_lossy(&output.stderr))))
        }
    }

    /// The folder of manifests.
    pub fn manifests(&self) -> PathBuf {
        self.folder().join("manifests")
    }

    /// A pod, or the external client, by name.
    ///
    /// # Errors
    /// There is none.
    pub fn member(&self, name: &str) -> Result<&Member> {
        self.pods
            .iter()
            .chain([&self.external])
            .find(|member| member.name == name)
            .ok_or_else(|| BedError::other(format!("no member of the bed is called {name}"), "see its plan"))
    }

    /// Whether packets between two members cross the gateway.
    pub fn crosses(&self, a: &Member, b: &Member) -> bool {
        a.v4 != b.v4 && (self.role != Role::Wire || a.outside != b.outside)
    }

    /// Lets the gateway's kernel forward, as a control of the bed itself: with it, and without ringwall, everybody
    /// reaches everybody.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forward_by_kernel(&self) -> Result<()> {
        self.gateway.sysctl("net/ipv4/ip_forward", "1")?;
        self.gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        if self.role == Role::Wire {
            // A bridge is what a wire is to the kernel.
            self.gateway.ip(&[
                "link add bridge type bridge forward_delay 0 stp_state 0",
                "link set in master bridge",
                "link set out master bridge",
                "link set bridge up",
            ])?;
        }
        Ok(())
    }
}

/// Addresses of the pod of an index.
pub fn pod_addresses(index: usize) -> (Ipv4Addr, Ipv6Addr) {
    let number = u16::try_from(index).unwrap_or(u16::MAX) + 10;
    let [high, low] = number.to_be_bytes();
    (
        Ipv4Addr::new(10, 111, high, low),
        Ipv6Addr::new(0xfd00, 0x111, 0, 0, 0, 0, 0, number),
    )
}

/// Addresses of the node of an index.
pub fn node_addresses(index: usize) -> (Ipv4Addr, Ipv6Addr) {
    let number = u8::try_from(index).unwrap_or(u8::MAX).saturating_add(10);
    (
        Ipv4Addr::new(198, 51, 100, number),
        Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, number.into()),
    )
}

fn router(name: &str) -> Result<Arc<Netns>> {
    let router = Arc::new(Netns::new(name)?);
    router.sysctl("net/ipv4/ip_forward", "1")?;
    router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    Ok(router)
}

/// A veth pair between two namespaces; MTU and queues of the near end as a gateway needs them.
fn link(near: &Netns, near_name: &str, far: &Netns, far_name: &str, queues: u32) -> Result<()> {
    near.ip(&[
        format!(
            "link add {near_name} numtxqueues {queues} numrxqueues {queues} type veth peer name {far_name} \
             numtxqueues {queues} numrxqueues {queues} netns {}",
            far.path()
        ),
        format!("link set {near_name} up"),
    ])?;
    far.ip(&[format!("link set {far_name} up")])
}

fn pod(
    role: Role,
    gateway: &Arc<Netns>,
    routers: &[Arc<Netns>],
    index: usize,
    plan: &Plan,
    queues: u32,
) -> Result<Member> {
    let ns = Arc::new(Netns::new(&plan.name)?);
    let (v4, v6) = match plan.node {
        true => node_addresses(index),
        false => pod_addresses(index),
    };
    let port = format!("pod{index}");
    // On a wire the router stands where the gateway stands else.
    let (host, queues) = match role {
        Role::Wire => (&routers[usize::from(plan.outside)], 1),
        Role::Routed | Role::Node | Role::Bridge => (gateway, queues),
    };
    link(host, &port, &ns, "eth0", queues)?;
    match role {
        Role::Bridge => join_bridge(host, &port, &ns, (v4, v6))?,
        Role::Wire => join_router(host, &port, &ns, (v4, v6), Default::default())?,
        Role::Routed | Role::Node => {
            let source = (format!(" src {GATEWAY}"), format!(" src {GATEWAY_V6}"));
            join_router(host, &port, &ns, (v4, v6), source)?;
        }
    }
    let servers = Servers::start(&ns, &plan.name, &plan.tcp, &plan.udp)?;
    Ok(Member {
        name: plan.name.clone(),
        ns,
        v4,
        v6,
        port: match (role, plan.outside) {
            (Role::Wire, true) => "out".to_owned(),
            (Role::Wire, false) => "in".to_owned(),
            _ => port,
        },
        outside: plan.outside,
        node: plan.node,
        _servers: servers,
    })
}

/// The pods' bridge, whose frames pass the rules for IP as on every node of Kubernetes.
fn bridge(node: &Netns) -> Result<()> {
    node.ip(&[
        format!("link add {BRIDGE} type bridge forward_delay 0 stp_state 0"),
        format!("link set {BRIDGE} up"),
        format!("address add {BRIDGE_V4}/24 dev {BRIDGE}"),
        format!("address add {BRIDGE_V6}/64 dev {BRIDGE} nodad"),
    ])?;
    for family in ["ip", "ip6"] {
        node.sysctl(&format!("net/bridge/bridge-nf-call-{family}tables"), "1")?;
    }
    Ok(())
}

fn join_bridge(host: &Netns, port: &str, ns: &Netns, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> Result<()> {
    host.ip(&[
        format!("link set {port} master {BRIDGE}"),
        format!("link set {port} type bridge_slave hairpin on"),
    ])?;
    ns.ip(&[
        format!("address add {v4}/24 dev eth0"),
        format!("route add default via {BRIDGE_V4} dev eth0"),
        format!("address add {v6}/64 dev eth0 nodad"),
        format!("route add default via {BRIDGE_V6} dev eth0"),
    ])
}

/// `source`, by family, is the end of a line of `ip route`.
fn join_router(
    host: &Netns,
    port: &str,
    ns: &Netns,
    (v4, v6): (Ipv4Addr, Ipv6Addr),
    (source, source_v6): (String, String),
) -> Result<()> {
    host.ip(&[
        format!("address add {POD_GATEWAY}/32 dev {port} scope link"),
        format!("address add fe80::1/64 dev {port} nodad"),
        // What the host itself says to a pod comes from its own address, not from the pods' gateway address.
        format!("route add {v4}/32 dev {port} scope link{source}"),
        format!("route add {v6}/128 dev {port}{source_v6}"),
    ])?;
    ns.ip(&[
        format!("address add {v4}/32 dev eth0"),
        format!("route add {POD_GATEWAY} dev eth0 scope link"),
        format!("route add default via {POD_GATEWAY} dev eth0"),
        format!("address add {v6}/128 dev eth0 nodad"),
        "route add default via fe80::1 dev eth0".to_owned(),
    ])
}

fn external(
    role: Role,
    gateway: &Arc<Netns>,
    routers: &[Arc<Netns>],
    tcp: &[u16],
    udp: &[u16],
    queues: u32,
) -> Result<Member> {
    let ns = Arc::new(Netns::new("external")?);
    let (host, queues) = match role {
        Role::Wire => (&routers[1], 1),
        Role::Routed | Role::Node | Role::Bridge => (gateway, queues),
    };
    link(host, "uplink", &ns, "eth0", queues)?;
    host.ip(&[
        format!("address add {GATEWAY}/24 dev uplink"),
        format!("address add {GATEWAY_V6}/64 dev uplink nodad"),
    ])?;
    ns.ip(&[
        format!("address add {EXTERNAL}/24 dev eth0"),
        format!("address add {EXTERNAL_V6}/64 dev eth0 nodad"),
        format!("route add default via {GATEWAY}"),
        format!("route add default via {GATEWAY_V6}"),
    ])?;
    ns.ip(&EXTERNAL_MORE.map(|address| format!("address add {address}/32 dev lo")))?;
    host.ip(&EXTERNAL_MORE.map(|address| format!("route add {address}/32 via {EXTERNAL}")))?;
    let servers = Servers::start(&ns, "external", tcp, udp)?;
    Ok(Member {
        name: "external".to_owned(),
        ns,
        v4: EXTERNAL,
        v6: EXTERNAL_V6,
        port: if role == Role::Wire {
            "out".to_owned()
        } else {
            "uplink".to_owned()
        },
        outside: true,
        node: false,
        _servers: servers,
    })
}

/// Joins the routers by the gateway.
fn wire(gateway: &Netns, routers: &[Arc<Netns>], pods: &[Member], queues: u32) -> Result<()> {
    let (inner, outer) = (&routers[0], &routers[1]);
    for (port, router, own) in [("in", inner, 1), ("out", outer, 2)] {
        link(gateway, port, router, "wire", queues)?;
        router.ip(&[
            format!("address add 198.51.100.{own}/24 dev wire"),
            format!("address add 2001:db8:1::{own}/64 dev wire nodad"),
        ])?;
    }
    inner.ip(&[
        "route add default via 198.51.100.2",
        "route add default via 2001:db8:1::2",
    ])?;
    // Pods inside are behind the inner router; those outside, and the external network, behind the outer one.
    let routes: Vec<_> = pods
        .iter()
        .filter(|pod| !pod.outside)
        .flat_map(|pod| {
            [
                format!("route add {}/32 via 198.51.100.1", pod.v4),
                format!("route add {}/128 via 2001:db8:1::1", pod.v6),
            ]
        })
        .collect();
    outer.ip(&routes)
}
