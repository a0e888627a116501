//! NetworkPolicies: what the idioms of public collections say, about what there is in the cluster.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::{
    Spec, Synthetic,
    catalogue::TEAMS,
    object::{time, uid},
    random::Random,
};

/// A policy. Its content is made once and kept, since it must not change with what it is about.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) space: usize,
    name: String,
    serial: u64,
    spec: Value,
    pub(super) gone: bool,
}

/// An address block that policies share.
#[derive(Clone, Debug)]
pub(super) struct Block {
    cidr: String,
    except: Vec<String>,
}

impl Block {
    /// The blocks of a cluster: the first are used by many policies, the last by few.
    pub(super) fn pool(random: &mut Random, spec: &Spec) -> Vec<Self> {
        let mut blocks = vec![Self {
            cidr: "0.0.0.0/0".to_owned(),
            except: ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
                .map(str::to_owned)
                .into(),
        }];
        if spec.dual_stack {
            blocks.push(Self {
                cidr: "::/0".to_owned(),
                except: vec!["fc00::/7".to_owned()],
            });
        }
        for number in 0..8 + spec.policies / 20 {
            let six = spec.dual_stack && number % 2 == 1;
            let except = random.chance(spec.excepts);
            blocks.push(if six {
                Self::six(random, except)
            } else {
                Self::four(random, except)
            });
        }
        blocks
    }

    fn four(random: &mut Random, except: bool) -> Self {
        let length = *random.pick(&[20, 22, 24, 24, 24, 28, 32]);
        let within = 1_u32 << (32 - length);
        let first = (0xc612_0000 + random.below(1 << 17) as u32) & !(within - 1);
        let except = if except && length < 32 {
            let longer = length + 1 + random.below(32 - length);
            let part = (first + random.below(within as usize) as u32) & !((1_u32 << (32 - longer)) - 1);
            vec![format!("{}/{longer}", Ipv4Addr::from(part))]
        } else {
            Vec::new()
        };
        Self {
            cidr: format!("{}/{length}", Ipv4Addr::from(first)),
            except,
        }
    }

    fn six(random: &mut Random, except: bool) -> Self {
        let first = (0x2001_0db8_u128 << 96) | ((random.below(1 << 16) as u128) << 80);
        let except = if except {
            vec![format!("{}/64", Ipv6Addr::from(first))]
        } else {
            Vec::new()
        };
        Self {
            cidr: format!("{}/48", Ipv6Addr::from(first)),
            except,
        }
    }

    fn peer(&self) -> Value {
        if self.except.is_empty() {
            json!({"ipBlock": {"cidr": self.cidr}})
        } else {
            json!({"ipBlock": {"cidr": self.cidr, "except": self.except}})
        }
    }
}

impl Synthetic {
    pub(super) fn policy_object(&self, place: usize) -> Value {
        let policy = &self.policies[place];
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {
                "name": policy.name,
                "namespace": self.namespaces[policy.space].name,
                "uid": uid(policy.serial),
                "creationTimestamp": time(policy.serial),
            },
            "spec": policy.spec,
        })
    }

    /// Gives the protected namespaces their policies, in proportion to their workloads.
    pub(super) fn add_policies(&mut self) {
        let spaces = self.namespaces.len();
        let mut protected: Vec<usize> = (0..spaces)
            .filter(|_| self.random.chance(self.spec.protected))
            .collect();
        if protected.is_empty() {
            protected.push(spaces - 1);
        }
        let weights: Vec<usize> = protected
            .iter()
            .map(|space| 2 + self.namespaces[*space].workloads.len())
            .collect();
        let sum: usize = weights.iter().sum();
        let mut given = 0;
        let mut weight_before = 0;
        for (space, weight) in protected.into_iter().zip(weights) {
            weight_before += weight;
            // Cut from the running sum, so that rounding loses none.
            let until = self.spec.policies * weight_before / sum;
            for number in 0..until - given {
                self.add_policy(space, number);
            }
            given = until;
        }
    }

    /// Adds the `number`-th policy of a namespace: what every namespace has comes first.
    pub(super) fn add_policy(&mut self, space: usize, number: usize) -> usize {
        let serial = self.next_serial();
        let (name, spec) = match number {
            0 => ("default-deny".to_owned(), self.default_deny(space)),
            1 if self.namespaces[space].open_inside => {
                ("allow-own-namespace".to_owned(), self.own_namespace(space))
            }
            2 => ("allow-monitoring".to_owned(), self.monitoring()),
            3 if self.namespaces[space].egress => ("allow-dns".to_owned(), dns_for(&json!({}))),
            _ => {
                let workload = self.workload_of(space);
                let instance = self.workloads[workload].instance.clone();
                (format!("{instance}-{serial:x}"), self.policy_of(space, workload))
            }
        };
        self.policies.push(Policy {
            space,
            name,
            serial,
            spec,
            gone: false,
        });
        self.policies.len() - 1
    }

    /// Writes a policy's rules anew; its name and subjects stay.
    pub(super) fn change_policy(&mut self, place: usize) {
        let space = self.policies[place].space;
        let workload = self.workload_of(space);
        let mut spec = self.policy_of(space, workload);
        spec["podSelector"] = self.policies[place].spec["podSelector"].clone();
        self.policies[place].spec = spec;
    }

    fn default_deny(&self, space: usize) -> Value {
        if self.namespaces[space].egress {
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})
        } else {
            json!({"podSelector": {}, "policyTypes": ["Ingress"]})
        }
    }

    fn own_namespace(&self, space: usize) -> Value {
        if self.namespaces[space].egress {
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
                   "ingress": [{"from": [{"podSelector": {}}]}], "egress": [{"to": [{"podSelector": {}}]}]})
        } else {
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]})
        }
    }

    fn monitoring(&mut self) -> Value {
        let port = if self.random.chance(self.spec.named) {
            json!("metrics")
        } else {
            json!(9090)
        };
        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
                      "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}}],
            "ports": [{"protocol": "TCP", "port": port}],
        }]})
    }

    /// A policy for a workload: who may reach its ports, and by share, what it may reach.
    fn policy_of(&mut self, space: usize, workload: usize) -> Value {
        let subjects = self.selector(workload);
        let mut ingress = Vec::new();
        if self.workloads[workload].app.component == "web" {
            ingress.push(json!({
                "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}],
                "ports": self.ports_of(workload),
            }));
        }
        for _ in 0..1 + self.random.below(2) {
            let peers: Vec<Value> = (0..1 + self.random.below(3))
                .map(|_| self.peer(space).0)
                .collect();
            let mut rule = json!({"from": peers});
            if !self.random.chance(self.spec.all_ports) {
                rule["ports"] = self.ports_of(workload);
            }
            ingress.push(rule);
        }
        if !self.namespaces[space].egress {
            return json!({"podSelector": subjects, "policyTypes": ["Ingress"], "ingress": ingress});
        }
        let mut egress = vec![dns_rule()];
        for _ in 0..1 + self.random.below(3) {
            let (peer, target) = self.peer(space);
            let mut rule = json!({"to": [peer]});
            if !self.random.chance(self.spec.all_ports) {
                rule["ports"] = match target {
                    Some(target) => self.ports_of(target),
                    None => json!([{"protocol": "TCP", "port": 443}]),
                };
            }
            egress.push(rule);
        }
        json!({"podSelector": subjects, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress})
    }

    /// A peer, and the workload that it is, if it is one.
    fn peer(&mut self, space: usize) -> (Value, Option<usize>) {
        if self.random.chance(self.spec.blocks) {
            // The lower of two draws: some blocks are used often.
            let (one, other) = (
                self.random.below(self.blocks.len()),
                self.random.below(self.blocks.len()),
            );
            return (self.blocks[one.min(other)].peer(), None);
        }
        if !self.random.chance(self.spec.across) {
            let workload = self.workload_of(space);
            return (json!({"podSelector": self.selector(workload)}), Some(workload));
        }
        let other = self.random.below(self.namespaces.len());
        let name = &self.namespaces[other].name;
        match self.random.below(10) {
            // By far the most: another namespace by its name, whole or one workload of it.
            0..=2 => {
                let peer =
                    json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}});
                (peer, None)
            }
            3..=6 => {
                let by = json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
                let workload = self.workload_of(other);
                let peer = json!({"namespaceSelector": by, "podSelector": self.selector(workload)});
                (peer, Some(workload))
            }
            7 | 8 => {
                let by = json!({"matchLabels": {"team": *self.random.pick(TEAMS), "environment": "prod"}});
                let component = *self.random.pick(&["web", "backend", "queue"]);
                let pods = json!({"matchLabels": {"app.kubernetes.io/component": component}});
                (json!({"namespaceSelector": by, "podSelector": pods}), None)
            }
            _ => {
                let pods = json!({"matchLabels": {"app.kubernetes.io/component": "web", "track": "canary"}});
                (json!({"namespaceSelector": {}, "podSelector": pods}), None)
            }
        }
    }

    fn workload_of(&mut self, space: usize) -> usize {
        let live = &self.namespaces[space].workloads;
        live[self.random.below(live.len())]
    }

    /// Selects a workload: its app or one instance, by labels or by expressions.
    fn selector(&mut self, workload: usize) -> Value {
        let of = &self.workloads[workload];
        let (name, component) = (of.app.name, of.app.component);
        let instance = of.instance.clone();
        if !self.random.chance(self.spec.expressions) {
            return match self.random.below(4) {
                0 => json!({"matchLabels": {"app.kubernetes.io/component": component}}),
                1 => {
                    json!({"matchLabels": {"app.kubernetes.io/name": name, "app.kubernetes.io/instance": instance}})
                }
                _ => json!({"matchLabels": {"app.kubernetes.io/name": name}}),
            };
        }
        match self.random.below(4) {
            0 => {
                let other = self.random.pick(super::APPS).name;
                json!({"matchExpressions": [{"key": "app.kubernetes.io/name", "operator": "In", "values": [name, other]}]})
            }
            1 => json!({"matchLabels": {"app.kubernetes.io/name": name},
                        "matchExpressions": [{"key": "track", "operator": "NotIn", "values": ["canary"]}]}),
            2 => json!({"matchLabels": {"app.kubernetes.io/component": component},
                        "matchExpressions": [{"key": "role", "operator": "Exists"}]}),
            _ => json!({"matchLabels": {"app.kubernetes.io/name": name},
                        "matchExpressions": [{"key": "batch.kubernetes.io/job-name", "operator": "DoesNotExist"}]}),
        }
    }

    /// One or two ports of a workload; DNS's for one that has none.
    fn ports_of(&mut self, workload: usize) -> Value {
        let app = self.workloads[workload].app;
        if app.ports.is_empty() {
            return json!([{"protocol": "TCP", "port": 443}]);
        }
        let most = app.ports.len().min(2);
        let first = self.random.below(app.ports.len());
        (0..1 + self.random.below(most))
            .map(|step| {
                let port = app.ports[(first + step) % app.ports.len()];
                if self.random.chance(self.spec.ranges) {
                    let lo = 30_000 + 100 * self.random.below(27);
                    return json!({"protocol": port.protocol, "port": lo, "endPort": lo + 99});
                }
                if self.random.chance(self.spec.named) {
                    return json!({"protocol": port.protocol, "port": port.name});
                }
                json!({"protocol": port.protocol, "port": port.number})
            })
            .collect()
    }
}

fn dns_rule() -> Value {
    json!({
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"app.kubernetes.io/name": "coredns"}}}],
        "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
    })
}

fn dns_for(subjects: &Value) -> Value {
    json!({"podSelector": subjects, "policyTypes": ["Egress"], "egress": [dns_rule()]})
}
