//! The rules of a policy: each whole, or as one that is not understood (TIERS 99, 107).

use std::collections::BTreeSet;

use ipnet::IpNet;
use ringwall_policy::{
    Action, Condition, Conditions, Fault, NAMESPACE_NAME_LABEL, ObjectKey, Operator, Peer, PodSelection,
    PolicyKind, TieredRule,
};
use serde_json::Value;

use super::{
    super::{
        field::{
            Fields, dns_subdomain, fault, item, join, list, mapping, only_hinting, present, strict_cidr,
            string, whole, wrong_type,
        },
        policy::Findings,
    },
    Awaiting, Direction, Family, GROUP, PortsOf, RulePlace, Wanted,
    ports::{self, Layer4},
    selector::{self, Expression},
    terms::{self, ACCOUNT, MOST_TERMS, NAMESPACE, OF_ACCOUNT, OF_NAMESPACE},
};

/// Most rules of a direction.
const MOST_RULES: usize = 1024;

/// Most blocks of a list.
const MOST_BLOCKS: usize = 256;

/// Most characters of a selector.
pub(super) const LONGEST_SELECTOR: usize = 1024;

/// Most methods and paths of `http`.
const MOST_OF_HTTP: usize = 20;

/// Reads the rules of one policy.
pub(super) struct Rules<'a> {
    pub(super) kind: PolicyKind,
    /// The policy's namespace; None for one of the whole cluster.
    pub(super) namespace: Option<&'a str>,
    /// What the object as a whole has.
    pub(super) findings: &'a mut Findings,
    /// As the state names it.
    pub(super) unevaluated: BTreeSet<String>,
    /// What other objects have a part in.
    pub(super) awaiting: Vec<Awaiting>,
    /// Whether it speaks of service accounts.
    pub(super) accounts: bool,
    /// How many of the object's faults are of rules, which allow nothing because of them.
    pub(super) not_understood: usize,
}

/// One side of a rule.
#[derive(Default)]
struct Entity {
    /// What an object at its address has to be; None for anything, also for what is no object.
    objects: Option<Expression>,
    /// What no object at its address may be, where there is no `objects`.
    not_objects: Option<Expression>,
    nets: Option<Vec<IpNet>>,
    not_nets: Option<Vec<IpNet>>,
    service: Option<ObjectKey>,
    ports: Option<ports::Ports>,
    not_ports: Option<ports::Ports>,
}

impl Rules<'_> {
    /// The rules of a direction.
    ///
    /// # Errors
    /// They are no list.
    pub(super) fn read(
        &mut self,
        spec: &Fields,
        at: &str,
        direction: Direction,
    ) -> Result<Vec<TieredRule>, Fault> {
        let rules = list(spec, at, direction.key())?;
        let path = join(at, direction.key());
        self.findings.at_most(rules.len(), MOST_RULES, "rules", &path);
        Ok(rules
            .iter()
            .enumerate()
            .map(|(index, rule)| self.rule(rule, &item(&path, index), direction, index))
            .collect())
    }

    fn rule(&mut self, value: &Value, at: &str, direction: Direction, index: usize) -> TieredRule {
        let mut own = Findings::default();
        let mut wanted = Vec::new();
        let (action, rule) = self.understood(value, at, direction, &mut own, &mut wanted);
        self.findings.notes.append(&mut own.notes);
        if let Some(rule) = rule
            && own.faults.is_empty()
            && own.unevaluated.is_empty()
        {
            self.awaiting.extend(wanted.into_iter().map(|wanted| Awaiting {
                direction,
                rule: index,
                path: at.to_owned(),
                wanted,
            }));
            return rule;
        }
        let comes_to = comes_to(action);
        self.not_understood += own.faults.len();
        let faults = own.faults.into_iter().map(|it| Fault {
            message: format!("{}; as it stands, the rule {comes_to}", it.message),
            ..it
        });
        self.findings.faults.extend(faults);
        let unevaluated = own.unevaluated.into_iter().map(|it| Fault {
            message: format!(
                "{}: the rule {comes_to}, and every verdict is incomplete",
                it.message
            ),
            ..it
        });
        self.findings.unevaluated.extend(unevaluated);
        TieredRule::not_understood(action)
    }

    /// A rule and what it does; `own` has what keeps it from being understood.
    fn understood(
        &mut self,
        value: &Value,
        at: &str,
        direction: Direction,
        own: &mut Findings,
        wanted: &mut Vec<Wanted>,
    ) -> (Action, Option<TieredRule>) {
        let Value::Object(fields) = value else {
            own.faults.push(fault(at, wrong_type(value, "a mapping")));
            return (Action::Deny, None);
        };
        only_hinting(
            fields,
            at,
            &[
                "action",
                "ipVersion",
                "protocol",
                "notProtocol",
                "icmp",
                "notICMP",
                "source",
                "destination",
                "http",
                "metadata",
            ],
            &mut own.faults,
            |key| match key {
                "from" | "to" => Some("write source or destination"),
                "ports" | "notPorts" | "selector" | "notSelector" | "nets" | "notNets"
                | "namespaceSelector" | "serviceAccounts" | "services" => {
                    Some("it belongs in source or destination, one level deeper")
                }
                _ => None,
            },
        );
        nulls(fields, at, &mut own.notes);
        let action = action(fields, at, own);
        let layer4 = self.layer4(fields, at, own);
        self.http(fields, at, direction, action, own);
        rule_metadata(fields, at, own);
        let source = self.entity(fields, at, "source", direction == Direction::Ingress, own);
        let destination = self.entity(fields, at, "destination", direction == Direction::Egress, own);
        let (Some(source), Some(destination)) = (source, destination) else {
            return (action, None);
        };
        let family = family(fields, at, &layer4, &source, &destination, own);
        self.ports_have_protocols(at, &layer4, &source, &destination, own);
        let (source_ports, not_source_ports) =
            layer4.sources(source.ports.as_ref(), source.not_ports.as_ref());
        let from = names_ports(&source).then_some(PortsOf::Source);
        let to = names_ports(&destination).then_some(PortsOf::Destination);
        // The destination's ports are those of the pod itself in ingress, the source's in egress.
        let (peer, peer_key, of_peer, this, this_key, of_this) = match direction {
            Direction::Ingress => (&source, "source", from, &destination, "destination", to),
            Direction::Egress => (&destination, "destination", to, &source, "source", from),
        };
        let mut conditions = Conditions::default();
        let peers = self.peers(
            peer,
            &join(at, peer_key),
            (family, of_peer),
            direction,
            (&mut conditions.peer, own, wanted),
        );
        let this = self.own_side(
            this,
            &join(at, this_key),
            of_this,
            (&mut conditions.own, own, wanted),
        );
        let layer4 = Layer4 {
            ports: destination.ports,
            not_ports: destination.not_ports,
            ..layer4
        };
        let (ports, not_ports) = layer4.matches();
        let (Some(peers), Some(())) = (peers, this) else {
            return (action, None);
        };
        // What matches no port matches nothing.
        if ports.as_ref().is_some_and(Vec::is_empty) || source_ports.as_ref().is_some_and(Vec::is_empty) {
            wanted.clear();
            return (action, Some(nothing(action)));
        }
        conditions.not_ports = not_ports;
        conditions.source_ports = source_ports;
        conditions.not_source_ports = not_source_ports;
        let rule = TieredRule {
            continues: false,
            action,
            peers,
            ports,
            conditions,
        };
        (action, Some(rule))
    }

    fn layer4(&mut self, fields: &Fields, at: &str, own: &mut Findings) -> Layer4 {
        let mut layer4 = Layer4 {
            protocol: ports::protocol(fields, at, "protocol", own),
            not_protocol: ports::protocol(fields, at, "notProtocol", own),
            ..Layer4::default()
        };
        let is_icmp = layer4.protocol.is_some_and(ports::Named::is_icmp);
        for key in ["icmp", "notICMP"] {
            let path = join(at, key);
            let icmp = match present(fields, key) {
                None => continue,
                Some(Value::Object(icmp)) => icmp,
                Some(other) => {
                    own.faults.push(fault(path, wrong_type(other, "a mapping")));
                    continue;
                }
            };
            only_hinting(icmp, &path, &["type", "code"], &mut own.faults, |_| None);
            if !is_icmp {
                own.faults
                    .push(fault(&path, "needs protocol ICMP or ICMPv6: write it beside"));
            }
            let mut number = |field: &str, most: u8| {
                let value = present(icmp, field)?;
                let number = whole(value).and_then(|number| u8::try_from(number).ok());
                let number = number.filter(|number| *number <= most);
                if number.is_none() {
                    let message = format!("{value} is not an ICMP {field}: write a number from 0 to {most}");
                    own.faults.push(fault(join(&path, field), message));
                }
                number
            };
            let (kind, code) = (number("type", 254), number("code", 255));
            if present(icmp, "type").is_none() && present(icmp, "code").is_some() {
                own.faults
                    .push(fault(join(&path, "code"), "needs a type: write it beside"));
            }
            let place = match key {
                "icmp" => &mut layer4.icmp,
                _ => &mut layer4.not_icmp,
            };
            *place = kind.map(|kind| (kind, code));
        }
        layer4
    }

    /// `http` restricts nothing that is judged here: the rule matches all of its connections (TIERS 99.10).
    fn http(&mut self, fields: &Fields, at: &str, direction: Direction, action: Action, own: &mut Findings) {
        let path = join(at, "http");
        let http = match present(fields, "http") {
            None => return,
            Some(Value::Object(http)) => http,
            Some(other) => return own.faults.push(fault(path, wrong_type(other, "a mapping"))),
        };
        let before = own.faults.len();
        only_hinting(http, &path, &["methods", "paths"], &mut own.faults, |_| None);
        let mut wrong = |what: &str| own.faults.push(fault(&path, what));
        if direction == Direction::Egress {
            wrong("is valid only in ingress rules: remove it");
        }
        if action != Action::Allow {
            wrong("is valid only in rules that allow: remove it");
        }
        let tcp = match fields.get("protocol") {
            None | Some(Value::Null) => true,
            Some(value) => value.as_str() == Some("TCP") || whole(value) == Some(6),
        };
        if !tcp {
            wrong("needs protocol TCP");
        }
        http_methods(http, &path, own);
        http_paths(http, &path, own);
        if own.faults.len() == before {
            let name = self.kind_name();
            self.unevaluated.insert(format!("http of {name}"));
            self.findings.unevaluated.push(fault(
                path,
                "methods and paths are not evaluated: the rule matches every connection that it would look into, and \
                 every verdict is incomplete",
            ));
        }
    }

    /// One side; None, with a fault, where it is no mapping.
    fn entity(
        &mut self,
        rule: &Fields,
        at: &str,
        key: &str,
        is_peer: bool,
        own: &mut Findings,
    ) -> Option<Entity> {
        let path = join(at, key);
        let fields = match mapping(rule, at, key) {
            Ok(fields) => fields,
            Err(wrong) => {
                own.faults.push(wrong);
                return None;
            }
        };
        only_hinting(
            fields,
            &path,
            &[
                "nets",
                "notNets",
                "selector",
                "notSelector",
                "namespaceSelector",
                "serviceAccounts",
                "services",
                "ports",
                "notPorts",
            ],
            &mut own.faults,
            |key| match key {
                "podSelector" => Some("write selector, such as selector: role == \"db\""),
                "ipBlock" => Some("write nets, a list of blocks"),
                "serviceAccountSelector" => Some("write serviceAccounts: {selector: ...}"),
                _ => None,
            },
        );
        nulls(fields, &path, &mut own.notes);
        let mut entity = Entity {
            nets: nets(fields, &path, "nets", own),
            not_nets: nets(fields, &path, "notNets", own),
            ports: ports::ports(fields, &path, "ports", own),
            not_ports: ports::ports(fields, &path, "notPorts", own),
            ..Entity::default()
        };
        let before = own.faults.len();
        let selector = expression(fields, &path, "selector", Globals::Refused, own);
        let not_selector = expression(fields, &path, "notSelector", Globals::Taken, own);
        let namespaces = expression(fields, &path, "namespaceSelector", Globals::Alone, own);
        let accounts = service_accounts(fields, &path, own);
        entity.service = self.service(fields, &path, key, is_peer, own);
        if entity.service.is_some() {
            for (key, given) in [
                ("selector", selector.is_some()),
                ("notSelector", not_selector.is_some()),
                ("namespaceSelector", namespaces.is_some()),
                ("serviceAccounts", present(fields, "serviceAccounts").is_some()),
                ("nets", entity.nets.is_some()),
                ("notNets", entity.not_nets.is_some()),
            ] {
                if given {
                    own.faults.push(fault(
                        join(&path, key),
                        "cannot be combined with services: write a separate rule for it",
                    ));
                }
            }
            for (field, given) in [
                ("ports", entity.ports.is_some()),
                ("notPorts", entity.not_ports.is_some()),
            ] {
                if key == "destination" && given {
                    own.faults.push(fault(
                        join(&path, field),
                        "cannot be combined with services, whose ports count: leave it out",
                    ));
                }
            }
        }
        if own.faults.len() > before {
            return Some(entity);
        }
        // TIERS 99.1, 99.2: with any selector, a rule of a namespace is for that namespace.
        let any = selector.is_some() || not_selector.is_some() || accounts.is_some() || namespaces.is_some();
        let of_namespaces = match (namespaces, self.namespace) {
            (Some(namespaces), _) => {
                let all = Expression::has(NAMESPACE);
                let global = Expression::has(NAMESPACE).negated();
                Some(namespaces.prefixed(OF_NAMESPACE, &all, &global))
            }
            (None, Some(namespace)) if any => Some(Expression::is(NAMESPACE, namespace)),
            (None, _) => None,
        };
        let mut parts: Vec<Expression> = [of_namespaces, accounts, selector]
            .into_iter()
            .flatten()
            .collect();
        match (parts.is_empty(), not_selector) {
            (true, not) => entity.not_objects = not,
            (false, not) => {
                // TIERS 96.5
                parts.extend(not.map(Expression::negated));
                entity.objects = Some(Expression::And(parts));
            }
        }
        Some(entity)
    }

    /// `services`: the name of one (TIERS 99.4).
    fn service(
        &self,
        fields: &Fields,
        at: &str,
        side: &str,
        is_peer: bool,
        own: &mut Findings,
    ) -> Option<ObjectKey> {
        let path = join(at, "services");
        let services = match present(fields, "services")? {
            Value::Object(services) => services,
            other => {
                own.faults.push(fault(path, wrong_type(other, "a mapping")));
                return None;
            }
        };
        only_hinting(services, &path, &["name", "namespace"], &mut own.faults, |_| None);
        if !is_peer {
            let message = match side {
                "source" => "an egress rule can name a service only as its destination",
                _ => "an ingress rule can name a service only as its source",
            };
            own.faults.push(fault(&path, message));
        }
        let mut name = |key: &str| match string(services, &path, key) {
            Ok(text) => {
                let text = text.unwrap_or_default();
                if !text.is_empty() && !dns_subdomain(text) {
                    own.faults
                        .push(fault(join(&path, key), format!("{text:?} is not a name")));
                }
                text.to_owned()
            }
            Err(wrong) => {
                own.faults.push(wrong);
                String::new()
            }
        };
        let (name, namespace) = (name("name"), name("namespace"));
        if name.is_empty() {
            own.faults.push(fault(
                join(&path, "name"),
                "is missing: write the name of the service",
            ));
        }
        let namespace = match (namespace.is_empty(), self.namespace) {
            (false, _) => namespace,
            (true, Some(own)) => own.to_owned(),
            (true, None) => {
                own.faults.push(fault(
                    join(&path, "namespace"),
                    "is missing: a cluster-wide policy must name the namespace of the service",
                ));
                namespace
            }
        };
        Some(ObjectKey { namespace, name })
    }

    /// Numbers are ports of a protocol that has some (TIERS 99.7).
    fn ports_have_protocols(
        &self,
        at: &str,
        layer4: &Layer4,
        source: &Entity,
        destination: &Entity,
        own: &mut Findings,
    ) {
        let with_ports = layer4
            .protocol
            .map(|protocol| matches!(protocol.number, 6 | 17 | 132));
        for (side, entity) in [("source", source), ("destination", destination)] {
            for (key, ports) in [("ports", &entity.ports), ("notPorts", &entity.not_ports)] {
                let Some(ports) = ports else { continue };
                let wrong = match with_ports {
                    Some(true) => continue,
                    Some(false) => "needs a protocol that has ports: write protocol: TCP, UDP or SCTP",
                    None if ports.ranges.is_empty() => continue,
                    None => "has port numbers, which need a protocol: write protocol: TCP, UDP or SCTP",
                };
                own.faults.push(fault(join(&join(at, side), key), wrong));
            }
        }
    }

    /// What a rule asks of the pod that the policy selects itself; None where that cannot be said.
    fn own_side(
        &mut self,
        this: &Entity,
        at: &str,
        by_name: Option<PortsOf>,
        (conditions, own, wanted): (&mut Vec<Condition>, &mut Findings, &mut Vec<Wanted>),
    ) -> Option<()> {
        let namespace = self.namespace;
        let is_anyone = |selection: &PodSelection| {
            let in_own = selection.namespaces.requirements.iter().all(|requirement| {
                requirement.key == NAMESPACE_NAME_LABEL
                    && matches!(&requirement.operator, Operator::In(names)
                        if namespace.is_some_and(|namespace| names.contains(namespace)))
            });
            in_own && selection.pods.requirements.is_empty()
        };
        for (negated, expression) in [(false, &this.objects), (true, &this.not_objects)] {
            let Some(expression) = expression else { continue };
            let pods = self.pods(expression, at, own)?;
            if !negated && pods.iter().any(is_anyone) {
                continue; // It says nothing.
            }
            // What has a name for a port matters where it has to match.
            let place = RulePlace::OfOwn(conditions.len());
            wanted.push(wanted_objects(
                expression,
                place,
                None,
                by_name.filter(|_| !negated),
            ));
            let any = pods.into_iter().map(peer_of).collect();
            conditions.push(Condition { negated, any });
        }
        if this.nets.is_some() || this.not_nets.is_some() {
            conditions.push(Condition {
                negated: false,
                any: blocks(this, None),
            });
        }
        Some(())
    }

    /// Who a rule is for; None where that cannot be said.
    fn peers(
        &mut self,
        peer: &Entity,
        at: &str,
        (family, by_name): (Option<Family>, Option<PortsOf>),
        direction: Direction,
        (conditions, own, wanted): (&mut Vec<Condition>, &mut Findings, &mut Vec<Wanted>),
    ) -> Option<Option<Vec<Peer>>> {
        // What the address has to be in.
        let by_address = (peer.nets.is_some() || peer.not_nets.is_some()).then(|| blocks(peer, family));
        let mut by_address = by_address.or_else(|| {
            let whole = |family: Family| {
                vec![Peer::Block {
                    cidr: family.whole(),
                    except: Vec::new(),
                }]
            };
            family.map(whole)
        });
        let peers = if let Some(key) = &peer.service {
            wanted.push(Wanted::Service {
                key: key.clone(),
                family,
                ports: direction == Direction::Egress,
            });
            Some(Vec::new())
        } else if let Some(expression) = &peer.objects {
            let pods = self.pods(expression, at, own)?;
            wanted.push(wanted_objects(expression, RulePlace::Peers, family, by_name));
            Some(pods.into_iter().map(peer_of).collect())
        } else {
            if by_name.is_some() {
                wanted.push(wanted_objects(
                    &Expression::All,
                    RulePlace::PeerBesides,
                    family,
                    by_name,
                ));
            }
            by_address.take()
        };
        if let Some(any) = by_address {
            conditions.push(Condition { negated: false, any });
        }
        if let Some(expression) = &peer.not_objects {
            let pods = self.pods(expression, at, own)?;
            let place = RulePlace::OfPeer(conditions.len());
            wanted.push(wanted_objects(expression, place, None, None));
            conditions.push(Condition {
                negated: true,
                any: pods.into_iter().map(peer_of).collect(),
            });
        }
        Some(peers)
    }

    /// The pods of an expression; None, with a fault, where it is too long.
    fn pods(&mut self, expression: &Expression, at: &str, own: &mut Findings) -> Option<Vec<PodSelection>> {
        let Ok(pods) = terms::pods(expression) else {
            own.faults.push(too_many_terms(at));
            return None;
        };
        self.accounts |= pods
            .iter()
            .any(|selection| terms::asks_for_accounts(&selection.pods));
        Some(pods)
    }

    fn kind_name(&self) -> String {
        kind_name(self.kind)
    }
}

/// A rule that matches nothing.
pub(super) fn nothing(action: Action) -> TieredRule {
    TieredRule {
        continues: false,
        action,
        peers: Some(Vec::new()),
        ports: None,
        conditions: Conditions::NONE,
    }
}

/// A kind with its group.
pub(super) fn kind_name(kind: PolicyKind) -> String {
    match kind {
        PolicyKind::CalicoNetworkPolicy => kind.name().to_owned(),
        _ => format!("{}.{GROUP}", kind.name()),
    }
}

/// What a rule comes to that is not understood.
pub(super) const fn comes_to(action: Action) -> &'static str {
    match action {
        Action::Allow => "matches nothing",
        Action::Deny | Action::Pass => "denies everything in its direction",
        Action::Log => "is passed over",
    }
}

/// What a rule does, or what it is taken for where that cannot be read.
fn action(fields: &Fields, at: &str, own: &mut Findings) -> Action {
    const WRITE: &str = "write Allow, Deny, Pass or Log";
    let text = match string(fields, at, "action") {
        Ok(text) => text.unwrap_or_default(),
        Err(wrong) => {
            own.faults.push(wrong);
            return Action::Deny;
        }
    };
    let (action, write) = match text {
        "Allow" => return Action::Allow,
        "Deny" => return Action::Deny,
        "Pass" => return Action::Pass,
        "Log" => return Action::Log,
        _ => match text.to_ascii_lowercase().as_str() {
            "accept" | "allow" => (Action::Allow, "write Allow"),
            "deny" => (Action::Deny, "write Deny"),
            "pass" | "next-tier" => (Action::Pass, "write Pass"),
            "log" => (Action::Log, "write Log"),
            _ => (Action::Deny, WRITE),
        },
    };
    let what = match text {
        "" => "is missing".to_owned(),
        text => format!("{text:?} is not an action"),
    };
    own.faults
        .push(fault(join(at, "action"), format!("{what}: {write}")));
    action
}

/// `metadata` of a rule is for people alone.
fn rule_metadata(fields: &Fields, at: &str, own: &mut Findings) {
    let path = join(at, "metadata");
    match mapping(fields, at, "metadata") {
        Ok(metadata) => {
            only_hinting(metadata, &path, &["annotations"], &mut own.faults, |_| None);
            own.faults.extend(mapping(metadata, &path, "annotations").err());
        }
        Err(wrong) => own.faults.push(wrong),
    }
}

fn http_methods(http: &Fields, at: &str, own: &mut Findings) {
    let path = join(at, "methods");
    let methods = match list(http, at, "methods") {
        Ok(methods) => methods,
        Err(wrong) => return own.faults.push(wrong),
    };
    if methods.len() > MOST_OF_HTTP {
        own.faults.push(fault(
            &path,
            format!("an API server takes {MOST_OF_HTTP} methods"),
        ));
    }
    let mut seen = BTreeSet::new();
    for (index, method) in methods.iter().enumerate() {
        match method.as_str() {
            Some(text) if seen.insert(text) => {}
            Some(text) => own
                .faults
                .push(fault(item(&path, index), format!("{text:?} is listed twice"))),
            None => own
                .faults
                .push(fault(item(&path, index), wrong_type(method, "a string"))),
        }
    }
}

fn http_paths(http: &Fields, at: &str, own: &mut Findings) {
    let path = join(at, "paths");
    let paths = match list(http, at, "paths") {
        Ok(paths) => paths,
        Err(wrong) => return own.faults.push(wrong),
    };
    if paths.len() > MOST_OF_HTTP {
        own.faults
            .push(fault(&path, format!("an API server takes {MOST_OF_HTTP} paths")));
    }
    for (index, entry) in paths.iter().enumerate() {
        let at = item(&path, index);
        let Value::Object(fields) = entry else {
            own.faults.push(fault(at, wrong_type(entry, "a mapping")));
            continue;
        };
        only_hinting(fields, &at, &["exact", "prefix"], &mut own.faults, |_| None);
        let text = |key| fields.get(key).and_then(Value::as_str).unwrap_or_default();
        let wrong = match (text("exact"), text("prefix")) {
            ("", "") => Some("is empty: write exact or prefix"),
            (text, "") | ("", text) => (!text.starts_with('/') || text.contains(['?', ' ', '#']))
                .then_some("is no path: it begins with / and has no ?, # or blank"),
            _ => Some("has exact and prefix: write one of them"),
        };
        own.faults.extend(wrong.map(|wrong| fault(at, wrong)));
    }
}

/// Whether a side has ports with names, which are those of the endpoints that it selects.
fn names_ports(entity: &Entity) -> bool {
    let lists = [&entity.ports, &entity.not_ports].into_iter().flatten();
    lists.into_iter().any(|ports| !ports.names.is_empty())
}

/// What is needed of network sets and host endpoints.
fn wanted_objects(
    expression: &Expression,
    place: RulePlace,
    family: Option<Family>,
    by_name: Option<PortsOf>,
) -> Wanted {
    Wanted::Objects {
        expression: expression.clone(),
        place,
        family,
        by_name,
    }
}

fn peer_of(PodSelection { namespaces, pods }: PodSelection) -> Peer {
    Peer::Pods {
        namespaces: Some(namespaces),
        pods,
    }
}

/// The version of IP that a rule is for (TIERS 99.5, 99.6, 99.8).
fn family(
    fields: &Fields,
    at: &str,
    layer4: &Layer4,
    source: &Entity,
    destination: &Entity,
    own: &mut Findings,
) -> Option<Family> {
    let by_protocol = layer4.protocol.and_then(|protocol| protocol.family);
    let written = match present(fields, "ipVersion") {
        None => None,
        Some(value) => match whole(value) {
            Some(4) => Some(Family::V4),
            Some(6) => Some(Family::V6),
            _ => {
                let message = format!("{value} is not an IP version: write 4 or 6");
                own.faults.push(fault(join(at, "ipVersion"), message));
                None
            }
        },
    };
    if let Some(written) = written {
        let of_number = |protocol: ports::Named| match protocol.number {
            1 => Some(Family::V4),
            58 => Some(Family::V6),
            _ => None,
        };
        for (key, protocol) in [
            ("protocol", layer4.protocol),
            ("notProtocol", layer4.not_protocol),
        ] {
            if protocol
                .and_then(of_number)
                .is_some_and(|family| family != written)
            {
                let message = "contradicts ipVersion: remove one of them";
                own.faults.push(fault(join(at, key), message));
            }
        }
    }
    let mut seen = written;
    for (side, entity) in [("source", source), ("destination", destination)] {
        for (key, nets) in [("nets", &entity.nets), ("notNets", &entity.not_nets)] {
            for net in nets.iter().flatten() {
                let family = Family::of(net);
                if *seen.get_or_insert(family) != family {
                    let message = match written {
                        Some(_) => "has a block of the other IP version than ipVersion",
                        None => "has IPv6 blocks in a rule with IPv4 blocks: write a rule for each",
                    };
                    own.faults.push(fault(join(&join(at, side), key), message));
                    break;
                }
            }
        }
    }
    written.or(by_protocol)
}

/// The blocks of `nets`, or of every address of their version where there are only `notNets`, without `notNets`.
fn blocks(peer: &Entity, family: Option<Family>) -> Vec<Peer> {
    let not_nets = peer.not_nets.as_deref().unwrap_or_default();
    let whole: Vec<IpNet> = not_nets
        .first()
        .map(|net| Family::of(net).whole())
        .into_iter()
        .collect();
    let nets = peer.nets.as_deref().unwrap_or(&whole);
    let within = |net: &IpNet| {
        let except = not_nets
            .iter()
            .filter(|not| net.contains(*not))
            .copied()
            .collect();
        Peer::Block { cidr: *net, except }
    };
    nets.iter()
        .filter(|net| family.is_none_or(|family| Family::of(net) == family))
        .filter(|net| !not_nets.iter().any(|not| not.contains(*net)))
        .map(within)
        .collect()
}

/// `nets` or `notNets`; None where there are none. An unreadable one costs the rule (TIERS 99.5).
fn nets(fields: &Fields, at: &str, key: &str, own: &mut Findings) -> Option<Vec<IpNet>> {
    let path = join(at, key);
    let entries = own.entries(fields, at, key, MOST_BLOCKS, "blocks")?;
    let mut nets = Vec::with_capacity(entries.len());
    for (index, value) in entries.iter().enumerate() {
        let at = item(&path, index);
        let Value::String(text) = value else {
            own.faults.push(fault(at, wrong_type(value, "a string")));
            continue;
        };
        match strict_cidr(text) {
            Ok((_, Some(odd))) => own.faults.push(fault(at, odd)),
            Ok((net, None)) if key == "notNets" && net.prefix_len() == 0 => own.faults.push(fault(
                at,
                format!("{text:?} leaves nothing that the rule could match: remove the rule"),
            )),
            Ok((net, None)) if nets.contains(&net) => own.faults.push(fault(
                at,
                format!("{text:?} is listed twice: an API server refuses that"),
            )),
            Ok((net, None)) => nets.push(net),
            Err(wrong) => own.faults.push(fault(at, wrong)),
        }
    }
    Some(nets)
}

/// Points out fields without value, which an API server drops: then the object does not ask for what they were to say.
pub(super) fn nulls(fields: &Fields, at: &str, notes: &mut Vec<Fault>) {
    let nulls = fields.iter().filter(|(_, value)| value.is_null());
    notes.extend(nulls.map(|(key, _)| {
        fault(
            join(at, key),
            "has no value, so an API server drops it, and the selector then requires nothing: write a value, or remove it",
        )
    }));
}

/// Where `global()` may stand (TIERS 97.5).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Globals {
    /// Nowhere, not even in quotes.
    Refused,
    /// Alone.
    Alone,
    /// Anywhere, without a meaning.
    Taken,
}

/// A selector; None where there is none, or, with a fault, where it cannot be read.
pub(super) fn expression(
    fields: &Fields,
    at: &str,
    key: &str,
    globals: Globals,
    own: &mut Findings,
) -> Option<Expression> {
    let path = join(at, key);
    let text = match string(fields, at, key) {
        Ok(text) => text.filter(|text| !text.is_empty())?,
        Err(wrong) => {
            own.faults.push(wrong);
            return None;
        }
    };
    let length = text.chars().count();
    if length > LONGEST_SELECTOR {
        let message =
            format!("has {length} characters, and an API server accepts at most {LONGEST_SELECTOR}");
        own.faults.push(fault(path, message));
        return None;
    }
    let global = match globals {
        Globals::Refused => text.contains("global("),
        Globals::Alone => text.contains("global(") && !selector::is_global_alone(text),
        Globals::Taken => false,
    };
    if global {
        let message = match globals {
            Globals::Alone => "global() cannot be combined with other terms: write a separate rule for it",
            _ => "global() can only be the namespaceSelector of a rule",
        };
        own.faults.push(fault(path, message));
        return None;
    }
    match selector::parse(text) {
        Ok(expression) => Some(expression),
        Err(wrong) => {
            own.faults
                .push(fault(path, format!("{text:?} is not a selector: {wrong}")));
            None
        }
    }
}

/// `serviceAccounts`: those of these names and with these labels; None where it asks for nothing.
fn service_accounts(fields: &Fields, at: &str, own: &mut Findings) -> Option<Expression> {
    let path = join(at, "serviceAccounts");
    let accounts = match mapping(fields, at, "serviceAccounts") {
        Ok(accounts) => accounts,
        Err(wrong) => {
            own.faults.push(wrong);
            return None;
        }
    };
    only_hinting(accounts, &path, &["names", "selector"], &mut own.faults, |_| None);
    let selector = expression(accounts, &path, "selector", Globals::Taken, own)
        .map(|it| it.prefixed(OF_ACCOUNT, &Expression::All, &Expression::Global));
    let names_at = join(&path, "names");
    let entries = match list(accounts, &path, "names") {
        Ok(entries) => entries,
        Err(wrong) => {
            own.faults.push(wrong);
            return None;
        }
    };
    let mut names = BTreeSet::new();
    for (index, value) in entries.iter().enumerate() {
        let at = item(&names_at, index);
        match value {
            Value::String(name) if !dns_subdomain(name) => own.faults.push(fault(
                at,
                format!("{name:?} is not the name of a service account"),
            )),
            Value::String(name) if !names.insert(name.clone()) => own.faults.push(fault(
                at,
                format!("{name:?} is listed twice: an API server refuses that"),
            )),
            Value::String(_) => {}
            other => own.faults.push(fault(at, wrong_type(other, "a string"))),
        }
    }
    let names = (!names.is_empty()).then(|| Expression::Label(ACCOUNT.to_owned(), selector::Test::In(names)));
    let mut parts: Vec<Expression> = selector.into_iter().chain(names).collect();
    match parts.len() {
        0 | 1 => parts.pop(),
        _ => Some(Expression::And(parts)),
    }
}

/// A selector that cannot be lowered.
pub(super) fn too_many_terms(at: &str) -> Fault {
    fault(
        at,
        format!(
            "its selectors come to more than {MOST_TERMS} alternatives, which ringwall does not take: write several rules, \
             or label the pods"
        ),
    )
}
