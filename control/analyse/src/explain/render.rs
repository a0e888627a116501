//! An explanation as text for people.

use std::fmt::Write as _;

use ringwall_policy::PolicyKind;

use super::report::{
    EntryTrace, Explanation, Party, PartyKind, PolicyTrace, RuleTrace, Side, SideEffects, Word,
};

/// Policies that do not select the pod are named up to this many; the JSON has all of them.
const MOST_OTHERS: usize = 8;

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Columns of a line.
    pub width: usize,
    /// Whether it goes to a terminal: ticks, crosses and colours.
    pub terminal: bool,
}

impl Style {
    /// For a file or a pipe.
    pub const PLAIN: Self = Self {
        width: 100,
        terminal: false,
    };

    /// As standard output is.
    pub fn of_stdout() -> Self {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
        let width = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        if terminal {
            Self {
                width: width.unwrap_or(Self::PLAIN.width).clamp(40, 140),
                terminal: std::env::var_os("NO_COLOR").is_none(),
            }
        } else {
            Self::PLAIN
        }
    }

    fn mark(self, good: bool) -> &'static str {
        match (self.terminal, good) {
            (true, true) => "\u{1b}[32m\u{2713}\u{1b}[0m",
            (true, false) => "\u{1b}[31m\u{2717}\u{1b}[0m",
            (false, true) => "+",
            (false, false) => "-",
        }
    }

    fn verdict(self, word: Word) -> String {
        match (self.terminal, word) {
            (true, Word::Allow) => "\u{1b}[1;32mallow\u{1b}[0m".to_owned(),
            (true, Word::Deny) => "\u{1b}[1;31mDENY\u{1b}[0m".to_owned(),
            (true, Word::Depends) => "\u{1b}[1;33mDEPENDS\u{1b}[0m".to_owned(),
            (false, Word::Depends) => "DEPENDS".to_owned(),
            (false, Word::Allow) => "allow".to_owned(),
            (false, Word::Deny) => "DENY".to_owned(),
        }
    }

    fn strong(self, text: &str) -> String {
        if self.terminal {
            format!("\u{1b}[1m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Writes an explanation.
pub fn render(explanation: &Explanation, style: Style) -> String {
    let mut page = Page {
        text: String::new(),
        style,
    };
    let title = format!(
        "{} -> {} {}",
        explanation.src.asked, explanation.dst.asked, explanation.service
    );
    let _ = writeln!(
        page.text,
        "{}: {}",
        style.strong(&title),
        style.verdict(explanation.verdict)
    );
    page.blank();
    page.party("From", &explanation.src);
    page.party("To", &explanation.dst);
    match &explanation.exemption {
        Some(why) => {
            page.blank();
            page.line(0, style.mark(true), &format!("Before any policy: {why}."));
        }
        None => {
            page.side("Egress", &explanation.egress);
            page.side("Ingress", &explanation.ingress);
        }
    }
    if !explanation.notes.is_empty() || !explanation.incomplete.is_empty() {
        page.blank();
    }
    for note in &explanation.notes {
        page.line(0, "Note:", note);
    }
    if !explanation.incomplete.is_empty() {
        let kinds = explanation.incomplete.join(", ");
        page.line(
            0,
            "Incomplete:",
            &format!("policies of these kinds exist and are not evaluated: {kinds}"),
        );
    }
    page.changes(explanation);
    page.text
}

struct Page {
    text: String,
    style: Style,
}

impl Page {
    fn blank(&mut self) {
        self.text.push('\n');
    }

    /// A wrapped line behind a mark.
    fn line(&mut self, indent: usize, mark: &str, text: &str) {
        let first = format!("{:indent$}{mark}{}", "", if mark.is_empty() { "" } else { " " });
        let rest = " ".repeat(textwrap::core::display_width(&first));
        let options = textwrap::Options::new(self.style.width)
            .initial_indent(&first)
            .subsequent_indent(&rest)
            .break_words(false)
            // Names keep their hyphens.
            .word_splitter(textwrap::WordSplitter::NoHyphenation)
            .word_separator(textwrap::WordSeparator::AsciiSpace);
        self.text.push_str(&textwrap::fill(text, options));
        self.text.push('\n');
    }

    fn party(&mut self, label: &str, party: &Party) {
        let what = match party.kind {
            PartyKind::Pod => "pod",
            PartyKind::Template => "workload",
            PartyKind::Node => "node",
            PartyKind::HostNetwork => "node (host network)",
            PartyKind::External => "outside of the cluster",
            PartyKind::Service => "a Service address",
            PartyKind::Unknown => "unknown: in a pod CIDR, but not the address of any known pod",
        };
        let mut words = match &party.name {
            Some(name) => format!("{what} {name}"),
            None => format!("{}, {what}", party.asked),
        };
        if let Some(address) = party.address.filter(|_| party.name.is_some()) {
            let _ = write!(words, " ({address})");
        }
        if let (PartyKind::Pod, Some(node)) = (party.kind, &party.node) {
            let _ = write!(words, " on node {node}");
        }
        self.line(0, &format!("{label:<5}"), &words);
        if matches!(party.kind, PartyKind::Pod | PartyKind::Template) {
            let labels = super::conditions::labels_words(&party.labels);
            self.line(6, "", &format!("labels: {labels}"));
            let labels = super::conditions::labels_words(&party.namespace_labels);
            self.line(6, "", &format!("labels of its namespace: {labels}"));
        }
        for why in &party.why {
            self.line(6, "", why);
        }
    }

    fn side(&mut self, name: &str, side: &Side) {
        self.blank();
        let title = self.style.strong(&format!("{name} of {}", side.subject));
        let _ = writeln!(self.text, "{title}: {}", self.style.verdict(side.verdict));
        self.line(2, "", &format!("{}.", side.why));
        let mut decided = false;
        for policy in side.policies.iter().filter(|policy| policy.selects) {
            // What is left of a tier that has decided, or passed, matters no more, nor do the later tiers.
            let tier = |other: &&PolicyTrace| other.tier == policy.tier;
            let over = |rule: &RuleTrace| rule.decides || rule.passes;
            let own = side
                .policies
                .iter()
                .filter(tier)
                .flat_map(|it| &it.rules)
                .any(over);
            self.policy(policy, policy.tier.is_some() && own || decided && !own);
            decided |= policy.isolates || policy.rules.iter().any(|rule| rule.decides);
        }
        let others: Vec<&PolicyTrace> = side.policies.iter().filter(|policy| !policy.selects).collect();
        for policy in others.iter().take(MOST_OTHERS) {
            self.line(
                2,
                self.style.mark(false),
                &format!("{} does not select it: {}", policy_name(policy), policy.selection),
            );
        }
        if others.len() > MOST_OTHERS {
            let more = others.len() - MOST_OTHERS;
            self.line(
                2,
                self.style.mark(false),
                &format!("{more} more policies do not select it"),
            );
        }
    }

    /// `late`: whether what matches and neither decides nor passes comes after what does.
    fn policy(&mut self, policy: &PolicyTrace, late: bool) {
        self.line(
            2,
            self.style.mark(true),
            &format!("{} selects it: {}", policy_name(policy), policy.selection),
        );
        if let Some(isolation) = &policy.isolation {
            self.line(4, "", isolation);
        }
        if !policy.faults.is_empty() {
            let what = match policy.tier {
                None => "it is invalid: it blocks everything it selects:",
                Some(_) => {
                    "not all of it is understood: an allow rule that is not allows nothing, a deny or pass rule denies everything:"
                }
            };
            self.line(4, "", what);
            for fault in &policy.faults {
                self.line(
                    6,
                    self.style.mark(false),
                    &format!("{}: {}", fault.path, fault.message),
                );
            }
        } else if policy.isolates && policy.rules.is_empty() {
            self.line(4, "", "it has no rules for this direction, so it allows nothing");
        } else if policy.tier.is_some() && policy.rules.is_empty() {
            self.line(4, "", "it has no rules for this direction, so it does not apply");
        }
        for rule in &policy.rules {
            self.rule(rule, late);
        }
    }

    fn rule(&mut self, rule: &RuleTrace, late: bool) {
        let mark = self.style.mark(rule.matches);
        let name = match &rule.action {
            Some(action) => format!("rule {} ({action})", rule.rule),
            None => format!("rule {}", rule.rule),
        };
        let text = match (&rule.failed_at, rule.decides) {
            (Some(what), _) => format!("{name} fails at its {what}"),
            (None, true) => format!("{name} matches: this is the one that decides"),
            (None, false) if rule.passes => format!("{name} matches: the next tier decides"),
            (None, false) if late => format!("{name} would match, but the decision has been made"),
            (None, false) => format!("{name} also matches"),
        };
        self.line(4, mark, &text);
        let of = |what: &str| rule.failed_at.as_deref().is_none_or(|failed| failed == what);
        if of("peers") {
            self.entries(rule.peers.as_deref(), "no peers: everyone");
        }
        if of("ports") {
            self.entries(rule.ports.as_deref(), "no ports: every protocol and port");
        }
        if of("conditions") {
            self.entries(Some(&rule.conditions), "");
        }
    }

    fn entries(&mut self, entries: Option<&[EntryTrace]>, none: &str) {
        let Some(entries) = entries else {
            return self.line(6, self.style.mark(true), none);
        };
        for entry in entries {
            let mark = self.style.mark(entry.matches);
            match &entry.why {
                Some(why) => self.line(6, mark, &format!("{}: {why}", entry.entry)),
                None => self.line(6, mark, &entry.entry),
            }
        }
    }

    fn changes(&mut self, explanation: &Explanation) {
        self.blank();
        if let (Word::Depends, Some(why)) = (explanation.verdict, &explanation.no_change) {
            return self.line(0, "", &format!("No change is proposed: {why}."));
        }
        let wanted = explanation.verdict.opposite();
        if let Some(why) = &explanation.no_change {
            let tiered = |reason: &ringwall_policy::Decider| {
                let kind = reason.kind.as_deref();
                kind.is_some_and(|kind| kind != PolicyKind::NetworkPolicy.name())
            };
            let policy = match explanation.reasons.iter().any(tiered) {
                true => "NetworkPolicy",
                false => "policy",
            };
            return self.line(
                0,
                "",
                &format!("No change of a {policy} or label would {wanted} it: {why}."),
            );
        }
        self.line(
            0,
            "",
            &format!("Changes that would {wanted} it, fewest side effects first:"),
        );
        for (change, number) in explanation.changes.iter().zip(1..) {
            let mut mark = format!("{number}.");
            for edit in &change.edits {
                self.line(2, &mark, &edit.text);
                mark = "  ".to_owned();
                for line in edit.yaml.iter().flat_map(|yaml| yaml.lines()) {
                    let _ = writeln!(self.text, "         {line}");
                }
            }
            self.line(2, "  ", &effects_words(&change.side_effects));
        }
    }
}

/// What to call a policy.
fn policy_name(policy: &PolicyTrace) -> String {
    let Some(tier) = &policy.tier else {
        return policy.policy.clone();
    };
    let order = match (policy.priority, &policy.order) {
        (Some(priority), _) => format!(", priority {priority}"),
        (None, Some(order)) => format!(", order {order}"),
        (None, None) => String::new(),
    };
    format!("{} {} ({tier}{order})", policy.kind, policy.policy)
}

/// What else a change changes, in a sentence.
fn effects_words(effects: &SideEffects) -> String {
    let ports = if effects.other_ports {
        "other ports of these two also change; "
    } else {
        ""
    };
    match effects.pairs {
        0 => format!("({ports}no other pair of endpoints)"),
        1 => format!("({ports}1 other pair of endpoints changes)"),
        many => format!("({ports}{many} other pairs of endpoints change)"),
    }
}
