//! What a synthetic cluster is like, and where its numbers come from.

/// A synthetic cluster, described. Equal descriptions give equal clusters.
///
/// Where the defaults come from:
///
/// | what | default | source |
/// |---|---|---|
/// | pods per node | 30 | median containers per host, Sysdig 2019 Container Usage Report; the kubelet's limit is 110 |
/// | pods of a workload | at least x with chance 2/x, to 250: median 3, mean 11.6 | long tail and a mean of 28 in "Complexity at Scale" (Winchester et al., arXiv 2504.13141: 67,760 microservices, 1,866,091 instances); most charts begin with 1 to 3; 250 endpoints a service is a threshold of Kubernetes SIG Scalability |
/// | pods of a namespace | weight 1/(rank + 8), at most 3,000 | threshold of Kubernetes SIG Scalability; the shape is an assumption |
/// | churn | a third of what begins is a job that lives for seconds to minutes | Sysdig 2019: half of the containers live for less than five minutes; the rest of the mix is an assumption |
/// | watch events of a new pod | 4: created, scheduled, running with its address, ready; 2 when it goes | what the API server sends for a pod of one container |
/// | policies of a namespace | in proportion to its workloads, `protected` namespaces only | assumption. Public surveys find most clusters with none (in "Inside Job", arXiv 2506.21134, lack of policies is among the commonest faults of 287 charts), so whoever buys a firewall is not average |
/// | what policies say | default deny, DNS, own namespace, monitoring, ingress, then one per workload | the idioms of public policy collections, shares by assumption; Red Hat's scale test (kube-burner `network-policy`: 20 policies a namespace with 5 ports, 5 ranges, 5 blocks and 5 peers each) is the upper end |
///
/// Every share is a number from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Of all choices.
    pub seed: u64,
    /// Pods, those on the host network and finished ones included.
    pub pods: usize,
    /// Namespaces, `kube-system`, `monitoring` and `ingress-nginx` included where there are more than three.
    pub namespaces: usize,
    /// Nodes; each has a /24 (and with `dual_stack` a /64) for its pods.
    pub nodes: usize,
    /// NetworkPolicies.
    pub policies: usize,
    /// Share of the namespaces that have policies.
    pub protected: f64,
    /// Share of the namespaces whose policies (also) isolate egress.
    pub egress: f64,
    /// Share of the peers that are address blocks.
    pub blocks: f64,
    /// Share of the blocks with `except`.
    pub excepts: f64,
    /// Share of the peers in other namespaces; the rest is in the policy's own.
    pub across: f64,
    /// Share of the selectors written as matchExpressions.
    pub expressions: f64,
    /// Share of the rules without `ports`.
    pub all_ports: f64,
    /// Share of the ports that are ranges (`endPort`), those of DNS apart.
    pub ranges: f64,
    /// Share of the ports that are names, ranges and those of DNS apart.
    pub named: f64,
    /// Whether pods and nodes have IPv6 addresses, too, and half of the blocks are of IPv6.
    pub dual_stack: bool,
    /// Share of the pods on the host network. The default is two agents on nodes of 30 pods, as a proxy and an exporter.
    pub host_network: f64,
    /// Share of the pods that have finished.
    pub finished: f64,
    /// Whether pods are as large as an API server's (some 4 kB: conditions, statuses, managedFields) or say only what
    /// a manifest needs.
    pub full: bool,
    /// What happens, for [`super::Synthetic::churn`].
    pub churn: Churn,
}

/// How often, relative to each other, things begin to happen.
#[derive(Clone, Debug, PartialEq)]
pub struct Churn {
    /// A rollout: all pods of a workload are replaced, one after the other, under a new template hash and version.
    pub rollout: f64,
    /// A job's pod: it comes, runs, finishes and is removed.
    pub job: f64,
    /// A workload gets a pod more or less.
    pub scale: f64,
    /// A pod is evicted and comes back on another node.
    pub reschedule: f64,
    /// A pod's readiness is lost and comes back: events that mean nothing to policy.
    pub readiness: f64,
    /// A live pod gets another value of a label (`role`, as at a fail-over, or `track`).
    pub relabel: f64,
    /// A policy is created, changed or deleted.
    pub policy: f64,
    /// A namespace is created with a workload and policies, relabelled, or deleted with all that is in it.
    pub namespace: f64,
    /// A node says that it is there, as each does every few minutes, or an empty one comes and goes again, with its pod
    /// network.
    pub node: f64,
    /// How many of these go on at once.
    pub concurrent: usize,
}

impl Default for Churn {
    fn default() -> Self {
        Self {
            rollout: 0.12,
            job: 0.35,
            scale: 0.20,
            reschedule: 0.15,
            readiness: 0.10,
            relabel: 0.05,
            policy: 0.02,
            namespace: 0.01,
            node: 0.02,
            concurrent: 64,
        }
    }
}

impl Churn {
    /// Pods only: neither policies nor namespaces nor nodes change.
    pub fn of_pods() -> Self {
        Self {
            policy: 0.0,
            namespace: 0.0,
            node: 0.0,
            ..Self::default()
        }
    }
}

impl Spec {
    /// The usual shares at some size.
    pub fn sized(policies: usize, pods: usize, namespaces: usize) -> Self {
        Self {
            seed: 1,
            pods,
            namespaces,
            nodes: pods.div_ceil(30).max(1),
            policies,
            protected: 0.7,
            egress: 0.4,
            blocks: 0.1,
            excepts: 0.3,
            across: 0.35,
            expressions: 0.2,
            all_ports: 0.2,
            ranges: 0.1,
            named: 0.2,
            dual_stack: false,
            host_network: 0.06,
            finished: 0.01,
            full: false,
            churn: Churn::default(),
        }
    }

    /// With another seed.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks that such a cluster can be.
    ///
    /// # Errors
    /// What is too small, too large or no share.
    pub(super) fn validate(&self) -> Result<(), SpecError> {
        let shares = [
            ("protected", self.protected),
            ("egress", self.egress),
            ("blocks", self.blocks),
            ("excepts", self.excepts),
            ("across", self.across),
            ("expressions", self.expressions),
            ("all_ports", self.all_ports),
            ("ranges", self.ranges),
            ("named", self.named),
            ("host_network", self.host_network),
            ("finished", self.finished),
        ];
        if let Some((name, share)) = shares.into_iter().find(|(_, it)| !(0.0..=1.0).contains(it)) {
            return Err(SpecError(format!("{name} is {share}: a share is from 0 to 1")));
        }
        if self.namespaces == 0 || self.pods < self.namespaces {
            return Err(SpecError(format!(
                "{} pods in {} namespaces: there is at least one namespace, and a pod in each",
                self.pods, self.namespaces
            )));
        }
        if self.nodes == 0 || self.nodes > MOST_NODES {
            return Err(SpecError(format!(
                "{} nodes: there are from 1 to {MOST_NODES}",
                self.nodes
            )));
        }
        if self.pods > self.nodes * MOST_PODS_OF_NODE {
            return Err(SpecError(format!(
                "{} pods on {} nodes: at most {MOST_PODS_OF_NODE} fit on one, so give it {} nodes",
                self.pods,
                self.nodes,
                self.pods.div_ceil(MOST_PODS_OF_NODE)
            )));
        }
        if self.policies > 0 && self.protected == 0.0 {
            return Err(SpecError("policies without protected namespaces".to_owned()));
        }
        Ok(())
    }
}

/// Then 10.0.0.0/8 would reach into the Service network, 10.96.0.0/12.
const MOST_NODES: usize = 20_000;
/// Of the 253 addresses of a /24: some are left for those that come before others go.
const MOST_PODS_OF_NODE: usize = 200;

/// Why there can be no such cluster.
#[derive(Debug, thiserror::Error)]
#[error("no such cluster: {0}")]
pub struct SpecError(pub(super) String);
