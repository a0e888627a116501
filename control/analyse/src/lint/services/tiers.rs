//! The same mistakes in policies of Calico and of Kubernetes' cluster-wide kinds, whose rules also deny.

use ringwall_policy::{Action, Peer, PodSelection, PortMatch, Protocol, Selector};
use serde_json::Value;

use super::{
    super::{
        draft::{Ask, Draft, Shown},
        order::{MOST_PEERS, Ordered, Ranked, RankedRule, some_peers},
        rules::{self, Rule},
        selecting::matches,
        subject::{DIRECTIONS, Direction, Subject},
        witnesses::Witnesses,
    },
    API_SERVER_ELSEWHERE, MATCHES_NOTHING, ServiceBlock, api_servers, behind_ports, names_api_server,
    runs_in_pods, says_service_port, where_requests_arrive,
};
use crate::flow::EndName;

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    if subject.cluster.tiered.is_empty() {
        return;
    }
    let ordered = Ordered::of(subject);
    for policy in ordered.policies.iter().filter(|it| !it.is_network_policy()) {
        let written = subject.written(&policy.label()).map(|it| it.value());
        let value = written.unwrap_or_default();
        for direction in DIRECTIONS {
            let rules = policy.rules(direction).unwrap_or_default();
            let decides = |rule: &&RankedRule<'_>| matches!(rule.action, Action::Allow | Action::Deny);
            // Alternatives of one rule may have the same ports.
            let mut reported: Vec<(usize, &str)> = Vec::new();
            for rule in rules.iter().filter(decides) {
                let suspect = Suspect {
                    subject,
                    policy,
                    value: &value,
                    direction,
                    rule,
                };
                let found = [
                    suspect.service_port(witnesses),
                    suspect.service_address(witnesses),
                    suspect.api_server(witnesses),
                ];
                for draft in found.into_iter().flatten() {
                    let key = (rule.index, draft.rule.id);
                    if !reported.contains(&key) {
                        reported.push(key);
                        drafts.push(draft);
                    }
                }
            }
        }
    }
}

/// A rule that is looked at.
struct Suspect<'s, 'a> {
    subject: &'s Subject<'a>,
    policy: &'s Ranked<'a>,
    /// The policy as written.
    value: &'s Value,
    direction: Direction,
    rule: &'s RankedRule<'a>,
}

impl<'a> Suspect<'_, 'a> {
    /// What the author wanted of a packet, and whether it passes if the suspicion is right.
    fn wanted(&self, what: &str) -> (String, bool) {
        match self.rule.action {
            Action::Deny => (format!("deny: {what}"), true),
            _ => (format!("allow: {what}"), false),
        }
    }

    fn draft(
        &self,
        rule: &'static Rule,
        field: String,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Draft<'a> {
        let written = self.subject.written(&self.policy.label());
        Draft::about(rule, written, field, message, fix).of_any_tier()
    }

    fn path(&self) -> String {
        format!("spec.{}[{}]", self.direction.key(), self.rule.index)
    }

    /// The path of the first value in the rule's text that is `sought`; else of the rule.
    fn path_of(&self, sought: &dyn Fn(&Value) -> bool) -> String {
        let at = format!("/spec/{}/{}", self.direction.key(), self.rule.index);
        let found = self.value.pointer(&at);
        let found = found.and_then(|it| path_within(it, &self.path(), sought));
        found.unwrap_or_else(|| self.path())
    }

    /// A pod that the policy selects.
    fn selected(&self, witnesses: &mut Witnesses<'_>) -> Option<EndName> {
        let mut subjects = self.policy.subjects.iter();
        subjects.find_map(|it| witnesses.selected(it))
    }

    /// A rule that names the port of a Service whose pods listen on another one.
    fn service_port(&self, witnesses: &mut Witnesses<'_>) -> Option<Draft<'a>> {
        let ports = self.rule.rule.ports.iter().flatten();
        ports
            .filter_map(|port| match port {
                PortMatch::Range { protocol, lo, hi } if lo == hi => Some((*protocol, *lo)),
                _ => None,
            })
            .find_map(|(protocol, number)| {
                let mut services = self.subject.services.iter();
                services.find_map(|service| {
                    let mut pods = behind_ports(service, protocol, number, witnesses).into_iter();
                    pods.find_map(|(pod, listens)| {
                        let end = EndName::Pod(pod.key.clone());
                        let namespace = witnesses.with_synthetic().namespaces.get(&pod.key.namespace)?;
                        let is_it = |namespaces: &Selector, pods: &Selector| {
                            matches(namespaces, &namespace.labels) && matches(pods, &pod.labels)
                        };
                        // The rule is about this pod: its policy selects it, or it is a peer.
                        let (us, other) = match self.direction {
                            Direction::Ingress => {
                                let selects = |it: &PodSelection| is_it(&it.namespaces, &it.pods);
                                if !self.policy.subjects.iter().any(selects) {
                                    return None;
                                }
                                witnesses.set_subject(&end);
                                let own = &self.policy.id.namespace;
                                let peers = some_peers(own, &self.rule.rule, MOST_PEERS, witnesses);
                                (end.clone(), peers.into_iter().find(|it| *it != end)?)
                            }
                            Direction::Egress => {
                                let is_peer = |peer: &Peer| match peer {
                                    Peer::Pods {
                                        namespaces: Some(namespaces),
                                        pods,
                                    } => is_it(namespaces, pods),
                                    _ => false,
                                };
                                if !self.rule.rule.peers.iter().flatten().any(is_peer) {
                                    return None;
                                }
                                (self.selected(witnesses).filter(|us| *us != end)?, end)
                            }
                        };
                        let (wanted, expect) = self.wanted(&where_requests_arrive(service, number, listens));
                        let is_port = |it: &Value| {
                            let text = || it.as_str().and_then(|text| text.parse().ok());
                            it.as_u64().or_else(text) == Some(u64::from(number))
                        };
                        Some(
                            self.draft(
                                rules::SERVICE_PORT,
                                self.path_of(&is_port),
                                says_service_port(service, number, listens),
                                format!("write port {listens}"),
                            )
                            .asking([Ask::new(
                                self.direction,
                                &us,
                                &other,
                                (protocol, listens),
                                expect,
                                wanted,
                            )]),
                        )
                    })
                })
            })
    }

    /// A block that is meant to be a Service, or all of them.
    fn service_address(&self, witnesses: &mut Witnesses<'_>) -> Option<Draft<'a>> {
        if self.direction != Direction::Egress {
            return None;
        }
        let peers = self.rule.rule.peers.iter().flatten();
        peers
            .filter_map(|peer| match peer {
                Peer::Block { cidr, except } => Some((cidr, except)),
                _ => None,
            })
            .find_map(|(cidr, except)| {
                let found = ServiceBlock::of(self.subject, cidr, except)?;
                let us = self.selected(witnesses)?;
                let asks = found.asks(&us, witnesses, &|pod| self.wanted(pod));
                let is_block = |it: &Value| {
                    let text = it.as_str().and_then(|it| it.parse::<ipnet::IpNet>().ok());
                    text.is_some_and(|net| net.trunc() == *cidr)
                };
                let fix = match self.policy.id.kind.is_calico() {
                    true => "name the Service under destination.services, or select the pods behind it, with the port they listen on",
                    false => "select the pods behind the Service by namespaces or pods, with the port they listen on",
                };
                let message = format!("{}{MATCHES_NOTHING}", found.what);
                let draft = self.draft(rules::SERVICE_ADDRESS, self.path_of(&is_block), message, fix);
                Some(draft.shown(Shown::Itself).asking(asks))
            })
    }

    /// A selector that is meant to be the API server, which is no pod.
    fn api_server(&self, witnesses: &mut Witnesses<'_>) -> Option<Draft<'a>> {
        if self.direction != Direction::Egress {
            return None;
        }
        let mut peers = self.rule.rule.peers.iter().flatten();
        let named = peers.any(|peer| match peer {
            Peer::Pods {
                namespaces: Some(namespaces),
                pods,
            } => {
                let here = |labels: &_| matches(namespaces, labels);
                names_api_server(pods) && !runs_in_pods(self.subject, &|_, labels| here(labels), pods)
            }
            _ => false,
        });
        if !named {
            return None;
        }
        let us = self.selected(witnesses)?;
        let (wanted, expect) = self.wanted("the API server");
        let asks: Vec<Ask> = api_servers(self.subject)
            .into_iter()
            .map(|(address, port)| {
                let server = EndName::Address(address);
                Ask::new(
                    self.direction,
                    &us,
                    &server,
                    (Protocol::Tcp, port),
                    expect,
                    wanted.clone(),
                )
            })
            .collect();
        let (key, fix) = match self.policy.id.kind.is_calico() {
            true => (
                "destination.selector",
                "name its addresses under destination.nets (kubectl get endpointslices -n default), or the Service default/kubernetes under \
                 destination.services",
            ),
            false => (
                "to",
                "name its addresses under networks (kubectl get endpointslices -n default), or its nodes under nodes",
            ),
        };
        let field = format!("{}.{key}", self.path());
        let draft = self.draft(rules::API_SERVER_BY_SELECTOR, field, API_SERVER_ELSEWHERE, fix);
        Some(draft.asking(asks))
    }
}

/// The path of the first value that is `sought`, in the order of the text's keys; `at` is that of `value`.
fn path_within(value: &Value, at: &str, sought: &dyn Fn(&Value) -> bool) -> Option<String> {
    match value {
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.find_map(|(index, item)| path_within(item, &format!("{at}[{index}]"), sought))
        }
        Value::Object(fields) => {
            let mut fields = fields.iter();
            fields.find_map(|(key, field)| path_within(field, &format!("{at}.{key}"), sought))
        }
        _ => sought(value).then(|| at.to_owned()),
    }
}
