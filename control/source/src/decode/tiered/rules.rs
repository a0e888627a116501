//! The rules of a policy: actions, peers, ports; each whole, or as one that is not understood.

use std::collections::BTreeSet;

use ringwall_policy::{Action, Conditions, Fault, Peer, PortMatch, TieredRule};
use serde_json::Value;

use super::{
    super::{
        field::{Fields, fault, item, join, list, only_hinting, present, strict_cidr, string, wrong_type},
        policy::{Findings, Nulls, selector},
    },
    Dialect, GROUP, PODS, close, given,
    nodes::NodesPeer,
    pods,
};

/// Most blocks or names of one peer.
const MOST_OF_PEER: usize = 25;

/// Most characters of a rule's name.
const MOST_OF_NAME: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    /// The field of `spec`, that of a rule with its peers, and that of a rule of the other direction.
    const fn keys(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Ingress => ("ingress", "from", "to"),
            Self::Egress => ("egress", "to", "from"),
        }
    }
}

/// Reads the rules of one policy.
pub(super) struct Rules<'a> {
    dialect: &'a Dialect,
    /// What the object as a whole has.
    findings: &'a mut Findings,
    /// As the state names it.
    pub(super) unevaluated: BTreeSet<String>,
    /// How many of the object's faults are of rules, which allow nothing because of them.
    pub(super) not_understood: usize,
    /// Peers by labels of nodes, of rules that are understood.
    pub(super) nodes: Vec<NodesPeer>,
}

/// What is read of the peers or the ports of a rule.
pub(super) struct List<T> {
    pub(super) entries: Vec<T>,
    /// The first entry that goes by address (peers) or name (ports).
    pub(super) special: Option<String>,
}

impl<'a> Rules<'a> {
    pub(super) fn of(dialect: &'a Dialect, findings: &'a mut Findings) -> Self {
        Self {
            dialect,
            findings,
            unevaluated: BTreeSet::new(),
            not_understood: 0,
            nodes: Vec::new(),
        }
    }

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
        let (key, ..) = direction.keys();
        let rules = list(spec, at, key)?;
        let path = join(at, key);
        self.findings
            .at_most(rules.len(), self.dialect.most, "rules", &path);
        Ok(rules
            .iter()
            .enumerate()
            .map(|(index, rule)| {
                let before = self.nodes.len();
                let (rule, holds) = self.rule(rule, &item(&path, index), direction);
                if !holds {
                    self.nodes.truncate(before);
                }
                self.nodes
                    .iter_mut()
                    .skip(before)
                    .for_each(|peer| peer.rule = index);
                rule
            })
            .collect())
    }

    /// A rule as it is lowered, and whether its peers are what it says.
    fn rule(&mut self, value: &Value, at: &str, direction: Direction) -> (TieredRule, bool) {
        let mut own = Findings::default();
        let before = self.findings.faults.len();
        let rule = self.understood(value, at, direction, &mut own);
        self.findings.notes.append(&mut own.notes);
        // What it says is clear, and an API server refuses it nevertheless.
        let refused = self.findings.faults.len() - before;
        self.not_understood += refused;
        for fault in self.findings.faults.iter_mut().skip(before) {
            fault
                .message
                .push_str("; as it stands, the rule allows nothing and denies what it would pass");
        }
        let (action, rule) = match rule {
            (action, Some(mut rule)) if own.faults.is_empty() && own.unevaluated.is_empty() => {
                if refused > 0 {
                    close(&mut rule);
                }
                return (rule, refused == 0 || action != Action::Allow);
            }
            (action, _) => (action, TieredRule::not_understood(action)),
        };
        let comes_to = match action {
            Action::Allow | Action::Log => "matches nothing",
            Action::Deny | Action::Pass => "denies everything in its direction",
        };
        self.not_understood += own.faults.len();
        self.findings
            .faults
            .extend(own.faults.into_iter().map(|it| Fault {
                message: format!("{}; as it stands, the rule {comes_to}", it.message),
                ..it
            }));
        let unevaluated = own.unevaluated.into_iter().map(|it| Fault {
            message: format!(
                "{}: the rule {comes_to}, and every verdict is incomplete",
                it.message
            ),
            ..it
        });
        self.findings.unevaluated.extend(unevaluated);
        (rule, false)
    }

    /// A rule and what it does; `own` has what keeps it from being understood.
    fn understood(
        &mut self,
        value: &Value,
        at: &str,
        direction: Direction,
        own: &mut Findings,
    ) -> (Action, Option<TieredRule>) {
        let Value::Object(fields) = value else {
            own.faults.push(fault(at, wrong_type(value, "a mapping")));
            return (Action::Deny, None);
        };
        let (_, peers_key, other_key) = direction.keys();
        let ports_key = self.dialect.ports;
        only_hinting(
            fields,
            at,
            &["name", "action", peers_key, ports_key],
            &mut own.faults,
            |key| match key {
                "ports" => {
                    Some("write protocols, such as protocols: [{tcp: {destinationPort: {number: 80}}}]")
                }
                "protocols" => Some("write ports, such as ports: [{portNumber: {protocol: TCP, port: 80}}]"),
                key if key == other_key && key == "from" => Some("a rule of egress has to"),
                key if key == other_key => Some("a rule of ingress has from"),
                "namespaces" | "pods" | "networks" | "nodes" | "domainNames" => {
                    Some("it belongs in an entry of from or to, one level deeper")
                }
                _ => None,
            },
        );
        self.name(fields, at);
        let action = action(fields, at, self.dialect, own);
        let peers = self.peers(fields, at, direction, action, own);
        let ports = self.ports(fields, at, own);
        let (Some(peers), Some(ports)) = (peers, ports) else {
            return (action, None);
        };
        if let (Some(_), Some(name)) = (&peers.special, ports.as_ref().and_then(|it| it.special.as_ref())) {
            own.faults.push(fault(
                name,
                "networks, nodes and domainNames have no named ports: write a number, or a separate rule for them",
            ));
        }
        let rule = TieredRule {
            continues: false,
            action,
            peers: Some(peers.entries),
            ports: ports.map(|ports| ports.entries),
            conditions: Conditions::NONE,
        };
        (action, Some(rule))
    }

    /// A rule's name is for people alone.
    fn name(&mut self, fields: &Fields, at: &str) {
        match string(fields, at, "name") {
            Err(wrong) => self.findings.faults.push(wrong),
            Ok(Some(name)) if name.chars().count() > MOST_OF_NAME => self.findings.faults.push(fault(
                join(at, "name"),
                format!(
                    "has {} characters, and an API server accepts at most {MOST_OF_NAME}: write a shorter one",
                    name.chars().count()
                ),
            )),
            Ok(_) => {}
        }
    }

    /// The peers of a rule; None, with a fault, where there are none to be read.
    fn peers(
        &mut self,
        fields: &Fields,
        at: &str,
        direction: Direction,
        action: Action,
        own: &mut Findings,
    ) -> Option<List<Peer>> {
        let (_, key, _) = direction.keys();
        let path = join(at, key);
        let entries = match list(fields, at, key) {
            Ok([]) => {
                let message = "is missing: a rule needs peers; namespaces: {} is every pod";
                own.faults.push(fault(path, message));
                return None;
            }
            Ok(entries) => entries,
            Err(wrong) => {
                own.faults.push(wrong);
                return None;
            }
        };
        self.findings
            .at_most(entries.len(), self.dialect.most, "peers", &path);
        let mut peers = List {
            entries: Vec::with_capacity(entries.len()),
            special: None,
        };
        for (index, value) in entries.iter().enumerate() {
            let at = item(&path, index);
            match value {
                Value::Object(fields) => self.peer(fields, &at, direction, action, &mut peers, own),
                other => own.faults.push(fault(at, wrong_type(other, "a mapping"))),
            }
        }
        Some(peers)
    }

    fn peer(
        &mut self,
        fields: &Fields,
        at: &str,
        direction: Direction,
        action: Action,
        peers: &mut List<Peer>,
        own: &mut Findings,
    ) {
        let known = match direction {
            Direction::Ingress => PODS,
            Direction::Egress => self.dialect.egress_peers,
        };
        let before = own.faults.len();
        only_hinting(fields, at, known, &mut own.faults, |key| match key {
            "networks" | "nodes" | "domainNames" | "ipBlock" if direction == Direction::Ingress => {
                Some("ingress peers can only be pods: no rule of this kind matches traffic from elsewhere")
            }
            "ipBlock" => Some("write networks, a list of blocks"),
            "domainNames" => Some("this kind has no such peers"),
            "podSelector" | "namespaceSelector" => Some("it belongs in pods, one level deeper"),
            "matchLabels" | "matchExpressions" => Some("it belongs in namespaces, one level deeper"),
            _ => None,
        });
        let key = match given(fields, known).as_slice() {
            [one] => *one,
            // Where there is an unknown field, that is what is wrong, and has been reported.
            [] if own.faults.len() > before => return,
            [] => {
                let message = format!(
                    "an empty peer: write one of {}; namespaces: {{}} is every pod",
                    known.join(", ")
                );
                return own.faults.push(fault(at, message));
            }
            several => {
                let message = format!(
                    "has {}: make each a separate list entry; entries are alternatives",
                    several.join(" and ")
                );
                return own.faults.push(fault(at, message));
            }
        };
        let path = join(at, key);
        if !PODS.contains(&key) {
            peers.special.get_or_insert_with(|| path.clone());
        }
        match key {
            "networks" => self.networks(fields, at, peers, own),
            "nodes" => {
                let nodes = selector(fields, at, key, Nulls::Dropped, own);
                self.nodes
                    .extend(nodes.map(|nodes| NodesPeer { rule: 0, path, nodes }));
            }
            "domainNames" => {
                if action != Action::Allow {
                    let message = format!(
                        "domain names are possible only in rules that allow: write {}, and a rule below it that denies the rest",
                        self.dialect.allow
                    );
                    own.faults.push(fault(path, message));
                } else if self.domain_names(fields, at, own) {
                    self.not_evaluated(key, path, own);
                }
            }
            _ => {
                let read = pods(fields, at, key, self.dialect, own);
                peers.entries.extend(read.map(|(namespaces, pods)| Peer::Pods {
                    namespaces: Some(namespaces),
                    pods,
                }));
            }
        }
    }

    /// Notes a peer that is valid and not evaluated yet.
    fn not_evaluated(&mut self, key: &str, path: String, own: &mut Findings) {
        let kind = self.dialect.kind.name();
        self.unevaluated.insert(format!("{key} peers of {kind}.{GROUP}"));
        own.unevaluated
            .push(fault(path, format!("{key} peers are not evaluated yet")));
    }

    fn networks(&mut self, fields: &Fields, at: &str, peers: &mut List<Peer>, own: &mut Findings) {
        for (text, at) in self.texts(fields, at, "networks", "blocks", own) {
            match strict_cidr(text) {
                Ok((cidr, odd)) => {
                    own.notes.extend(odd.map(|odd| fault(&at, odd)));
                    peers.entries.push(Peer::Block {
                        cidr,
                        except: Vec::new(),
                    });
                }
                Err(wrong) => own.faults.push(fault(at, wrong)),
            }
        }
    }

    /// Whether every name is one.
    fn domain_names(&mut self, fields: &Fields, at: &str, own: &mut Findings) -> bool {
        let before = own.faults.len();
        for (name, at) in self.texts(fields, at, "domainNames", "names", own) {
            if !is_domain_name(name) {
                own.faults.push(fault(
                    at,
                    format!(
                        "{name:?} is not a domain name: write one such as www.example.org, or *.example.org for the \
                         names below it"
                    ),
                ));
            }
        }
        own.faults.len() == before
    }

    /// The texts of a list that is a set and not empty, with their paths.
    fn texts<'v>(
        &mut self,
        fields: &'v Fields,
        at: &str,
        key: &str,
        what: &str,
        own: &mut Findings,
    ) -> Vec<(&'v str, String)> {
        let path = join(at, key);
        let entries = match list(fields, at, key) {
            Ok([]) => {
                own.faults.push(fault(path, format!("is empty: write {what}")));
                return Vec::new();
            }
            Ok(entries) => entries,
            Err(wrong) => {
                own.faults.push(wrong);
                return Vec::new();
            }
        };
        self.findings.at_most(entries.len(), MOST_OF_PEER, what, &path);
        let mut texts = Vec::with_capacity(entries.len());
        let mut seen = BTreeSet::new();
        for (index, value) in entries.iter().enumerate() {
            let at = item(&path, index);
            match value {
                Value::String(text) => {
                    if !seen.insert(text) {
                        let message = format!("{text:?} is listed twice: an API server refuses that");
                        self.findings.faults.push(fault(&at, message));
                    }
                    texts.push((text.as_str(), at));
                }
                other => own.faults.push(fault(at, wrong_type(other, "a string"))),
            }
        }
        texts
    }

    /// The ports of a rule, Some(None) where it is for all; None, with a fault, where they cannot be read.
    fn ports(&mut self, fields: &Fields, at: &str, own: &mut Findings) -> Option<Option<List<PortMatch>>> {
        let key = self.dialect.ports;
        let path = join(at, key);
        if present(fields, key).is_none() {
            return Some(None);
        }
        let entries = match list(fields, at, key) {
            Ok([]) => {
                let message = "is empty: write protocols, or remove it for all protocols and ports";
                own.faults.push(fault(path, message));
                return None;
            }
            Ok(entries) => entries,
            Err(wrong) => {
                own.faults.push(wrong);
                return None;
            }
        };
        self.findings
            .at_most(entries.len(), self.dialect.most, key, &path);
        let mut ports = List {
            entries: Vec::with_capacity(entries.len()),
            special: None,
        };
        for (index, value) in entries.iter().enumerate() {
            let at = item(&path, index);
            match value {
                Value::Object(fields) => (self.dialect.port)(fields, &at, &mut ports, own),
                other => own.faults.push(fault(at, wrong_type(other, "a mapping"))),
            }
        }
        Some(Some(ports))
    }
}

/// What a rule does, or what it is taken for where that cannot be read: an Allow where it says so in other words, else a
/// Deny, since it may have been one.
fn action(fields: &Fields, at: &str, dialect: &Dialect, own: &mut Findings) -> Action {
    let actions = match dialect.passes {
        true => format!("{}, Deny or Pass", dialect.allow),
        false => format!("{} or Deny", dialect.allow),
    };
    let text = match string(fields, at, "action") {
        Ok(text) => text,
        Err(wrong) => {
            own.faults.push(wrong);
            return Action::Deny;
        }
    };
    let (action, write) = match text {
        Some(text) if text == dialect.allow => return Action::Allow,
        Some("Deny") => return Action::Deny,
        Some("Pass") if dialect.passes => return Action::Pass,
        Some(text) => match text.to_ascii_lowercase().as_str() {
            "accept" | "allow" => (Action::Allow, dialect.allow.to_owned()),
            "deny" => (Action::Deny, "Deny".to_owned()),
            "pass" if dialect.passes => (Action::Pass, "Pass".to_owned()),
            _ => (Action::Deny, actions),
        },
        None => (Action::Deny, actions),
    };
    let what = match text {
        Some(text) => format!("{text:?} is not an action of {}", dialect.kind.name()),
        None => "is missing".to_owned(),
    };
    own.faults
        .push(fault(join(at, "action"), format!("{what}: write {write}")));
    action
}

/// Whether this is a domain name, or `*.` before one, as the API has it: two labels or more, perhaps a final dot.
pub(super) fn is_domain_name(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        // The API's pattern has a range from A to z for the first character, and so what lies between Z and a, too.
        let first = |b: &u8| (b'A'..=b'z').contains(b) || b.is_ascii_digit();
        bytes.first().is_some_and(first)
            && bytes.iter().skip(1).all(inner)
            && (bytes.len() == 1 || bytes.last().is_some_and(u8::is_ascii_alphanumeric))
    };
    name.contains('.') && name.split('.').all(is_label)
}
