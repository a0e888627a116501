//! Ports cut where some policy may change its mind, so that one question answers for a whole span.

use std::collections::{BTreeMap, BTreeSet};

use ringwall_analyse::flow::{Service, protocol_name};
use ringwall_policy::{Cluster, PortMatch, Protocol};

/// What is asked about a pair of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    spans: Vec<Span>,
    /// Whether the spans are everything there is, not a choice.
    everything: bool,
}

/// A span of ports that every policy treats alike, or a protocol without ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// What stands for it.
    pub(super) service: Service,
    /// Last port.
    last: u16,
    /// Stands for every protocol without ports.
    portless: bool,
}

impl Asked {
    /// Exactly these services.
    pub(super) fn only(services: &[Service]) -> Self {
        let spans = services
            .iter()
            .map(|service| Span {
                service: *service,
                last: service.port.unwrap_or(0),
                portless: false,
            })
            .collect();
        Self {
            spans,
            everything: false,
        }
    }

    /// Everything, cut at every port that a policy of the cluster names.
    pub(super) fn everything(cluster: &Cluster) -> Self {
        let mut cuts: BTreeMap<Protocol, BTreeSet<u16>> = BTreeMap::new();
        let mut cut = |protocol: Protocol, lo: u16, hi: u16| {
            let cuts = cuts.entry(protocol).or_default();
            cuts.insert(lo);
            cuts.extend(hi.checked_add(1));
        };
        for port in cluster.named_ports() {
            match port {
                PortMatch::All(_) | PortMatch::IpProtocol(_) => {}
                PortMatch::Range { protocol, lo, hi } => cut(*protocol, *lo, *hi),
                PortMatch::Named { protocol, name } => {
                    let named = cluster.pods.values().flat_map(|pod| &pod.named_ports);
                    for port in named.filter(|port| port.name == *name && port.protocol == *protocol) {
                        cut(*protocol, port.number, port.number);
                    }
                }
            }
        }
        let mut spans = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let mut starts: Vec<u16> = cuts.remove(&protocol).unwrap_or_default().into_iter().collect();
            if starts.first() != Some(&0) {
                starts.insert(0, 0);
            }
            let ends = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
            for (first, last) in starts.iter().zip(ends) {
                let service = Service {
                    protocol: protocol.number(),
                    port: Some(*first),
                };
                spans.push(Span {
                    service,
                    last,
                    portless: false,
                });
            }
        }
        // 35: no rule tells them apart.
        spans.push(Span {
            service: Service {
                protocol: 1,
                port: None,
            },
            last: 0,
            portless: true,
        });
        Self {
            spans,
            everything: true,
        }
    }

    /// The spans.
    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// What of it is allowed, in words; neighbouring spans become one.
    pub(super) fn words(&self, allowed: &[bool]) -> Vec<String> {
        if self.everything && allowed.iter().all(|allowed| *allowed) {
            return vec!["all".to_owned()];
        }
        let mut words: Vec<String> = Vec::new();
        let mut run: Option<(u8, u16, u16)> = None;
        let end_run = |run: &mut Option<(u8, u16, u16)>, words: &mut Vec<String>| {
            if let Some((protocol, first, last)) = run.take() {
                let name = protocol_name(protocol);
                words.push(match (first, last) {
                    (0, u16::MAX) => name,
                    (first, last) if first == last => format!("{first}/{name}"),
                    (first, last) => format!("{first}-{last}/{name}"),
                });
            }
        };
        for (span, allowed) in self.spans.iter().zip(allowed) {
            let Some(port) = span.service.port else {
                end_run(&mut run, &mut words);
                if *allowed {
                    words.push(if span.portless {
                        "other".to_owned()
                    } else {
                        span.service.to_string()
                    });
                }
                continue;
            };
            let joins = run.is_some_and(|(protocol, _, last)| {
                self.everything && protocol == span.service.protocol && last.checked_add(1) == Some(port)
            });
            match (&mut run, *allowed, joins) {
                (Some((_, _, last)), true, true) => *last = span.last,
                (_, true, _) => {
                    end_run(&mut run, &mut words);
                    run = Some((span.service.protocol, port, span.last));
                }
                (_, false, _) => end_run(&mut run, &mut words),
            }
        }
        end_run(&mut run, &mut words);
        words
    }
}
