//! What runs in the synthetic clusters: applications with the ports that they usually have.

/// How a workload replaces its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    /// Pods with random names, replaced by new ones.
    Deployment,
    /// Numbered pods, which keep their names.
    StatefulSet,
    /// One pod a node.
    DaemonSet,
    /// Pods that end.
    Job,
}

impl Controller {
    pub(super) fn owner(self) -> &'static str {
        match self {
            Self::Deployment => "ReplicaSet",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::Job => "Job",
        }
    }
}

/// A container port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Port {
    pub(super) name: &'static str,
    pub(super) number: u16,
    pub(super) protocol: &'static str,
}

/// A kind of application.
#[derive(Clone, Copy, Debug)]
pub(super) struct App {
    pub(super) name: &'static str,
    pub(super) component: &'static str,
    pub(super) controller: Controller,
    pub(super) ports: &'static [Port],
}

const fn tcp(name: &'static str, number: u16) -> Port {
    Port {
        name,
        number,
        protocol: "TCP",
    }
}

const fn udp(name: &'static str, number: u16) -> Port {
    Port {
        name,
        number,
        protocol: "UDP",
    }
}

const fn app(
    name: &'static str,
    component: &'static str,
    controller: Controller,
    ports: &'static [Port],
) -> App {
    App {
        name,
        component,
        controller,
        ports,
    }
}

use Controller::{DaemonSet, Deployment, Job, StatefulSet};

/// What teams run, the frequent first: a namespace begins at a random place and goes round.
pub(super) const APPS: &[App] = &[
    app(
        "frontend",
        "web",
        Deployment,
        &[tcp("http", 8080), tcp("metrics", 9090)],
    ),
    app(
        "api",
        "backend",
        Deployment,
        &[tcp("http", 8080), tcp("grpc", 50051), tcp("metrics", 9090)],
    ),
    app(
        "postgresql",
        "database",
        StatefulSet,
        &[tcp("tcp-postgresql", 5432), tcp("metrics", 9187)],
    ),
    app("worker", "backend", Deployment, &[tcp("metrics", 9090)]),
    app(
        "redis",
        "cache",
        StatefulSet,
        &[tcp("redis", 6379), tcp("metrics", 9121)],
    ),
    app("import", "batch", Job, &[]),
    app(
        "gateway",
        "web",
        Deployment,
        &[tcp("https", 8443), tcp("http", 8080), tcp("metrics", 9102)],
    ),
    app(
        "orders",
        "backend",
        Deployment,
        &[tcp("http", 8080), tcp("metrics", 9090)],
    ),
    app(
        "kafka",
        "queue",
        StatefulSet,
        &[
            tcp("client", 9092),
            tcp("interbroker", 9093),
            tcp("metrics", 5556),
        ],
    ),
    app(
        "accounts",
        "backend",
        Deployment,
        &[tcp("grpc", 50051), tcp("metrics", 9090)],
    ),
    app(
        "search",
        "backend",
        StatefulSet,
        &[tcp("http", 9200), tcp("transport", 9300)],
    ),
    app(
        "mailer",
        "backend",
        Deployment,
        &[tcp("smtp", 2525), tcp("metrics", 9090)],
    ),
    app("report", "batch", Job, &[]),
    app(
        "rabbitmq",
        "queue",
        StatefulSet,
        &[tcp("amqp", 5672), tcp("epmd", 4369), tcp("dist", 25672)],
    ),
    app(
        "telephony",
        "media",
        Deployment,
        &[udp("sip", 5060), udp("rtp", 10000)],
    ),
    app(
        "mysql",
        "database",
        StatefulSet,
        &[tcp("mysql", 3306), tcp("metrics", 9104)],
    ),
];

/// The namespaces that every cluster has, before those of the teams, and what runs there: the last app of each holds
/// the pods on the host network.
pub(super) const SYSTEM: &[(&str, &[App])] = &[
    (
        "kube-system",
        &[
            app(
                "coredns",
                "dns",
                Deployment,
                &[udp("dns", 53), tcp("dns-tcp", 53), tcp("metrics", 9153)],
            ),
            app("kube-proxy", "node", DaemonSet, &[tcp("metrics", 10249)]),
        ],
    ),
    (
        "monitoring",
        &[
            app("prometheus", "metrics", StatefulSet, &[tcp("http-web", 9090)]),
            app("node-exporter", "node", DaemonSet, &[tcp("metrics", 9100)]),
        ],
    ),
    (
        "ingress-nginx",
        &[app(
            "ingress-nginx",
            "controller",
            Deployment,
            &[tcp("http", 80), tcp("https", 443), tcp("metrics", 10254)],
        )],
    ),
];

/// Teams, which namespaces are labelled with.
pub(super) const TEAMS: &[&str] = &[
    "checkout",
    "search",
    "identity",
    "logistics",
    "payments",
    "platform",
    "content",
    "insight",
    "support",
    "mobile",
];
