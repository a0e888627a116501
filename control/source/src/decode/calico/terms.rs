//! From a selector expression to pods by labels: a disjunction of conjunctions, each of labels of the namespace and
//! labels of the pod.

use std::collections::{BTreeMap, BTreeSet};

use ringwall_policy::{
    ACCOUNT_LABEL, NAMESPACE_NAME_LABEL, Operator, Part, PodSelection, Requirement, Selector,
};

use super::selector::{Expression, Test};

/// Most conjunctions of a selector. Beyond these it is not understood.
pub(super) const MOST_TERMS: usize = 256;

/// Label of what is in a namespace: its name.
pub(super) const NAMESPACE: &str = "projectcalico.org/namespace";
/// Label of a pod: the name of its service account.
pub(super) const ACCOUNT: &str = "projectcalico.org/serviceaccount";
/// Label of a pod: who made it.
const ORCHESTRATOR: &str = "projectcalico.org/orchestrator";
/// The one that makes pods.
const KUBERNETES: &str = "k8s";
/// Begins the labels of a pod that are those of its namespace.
pub(super) const OF_NAMESPACE: &str = "pcns.";
/// Begins the labels of a pod that are those of its service account.
pub(super) const OF_ACCOUNT: &str = "pcsa.";
/// Label of a namespace and of a service account, as pods have them: its name.
pub(super) const NAME: &str = "projectcalico.org/name";

/// The key of a pod's label that has the name of its service account.
pub(super) fn account_name_key() -> String {
    format!("{ACCOUNT_LABEL}{NAME}")
}

/// A selector with more conjunctions than [`MOST_TERMS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyTerms;

/// The pods that an expression matches: those of any of these.
///
/// # Errors
/// They are too many.
pub(super) fn pods(expression: &Expression) -> Result<Vec<PodSelection>, TooManyTerms> {
    let terms = terms(expression, false)?;
    let selector = |labels: &BTreeMap<String, Vec<Operator>>| Selector {
        requirements: labels
            .iter()
            .flat_map(|(key, operators)| {
                operators.iter().map(|operator| Requirement {
                    key: key.clone(),
                    operator: operator.clone(),
                })
            })
            .collect(),
    };
    let selection = |term: &Term| PodSelection {
        namespaces: selector(&term.namespaces),
        pods: selector(&term.pods),
    };
    Ok(terms.iter().map(selection).collect())
}

/// Whether a selector of pods asks for a label of their service accounts.
pub(super) fn asks_for_accounts(pods: &Selector) -> bool {
    pods.requirements
        .iter()
        .any(|requirement| requirement.key.starts_with(ACCOUNT_LABEL))
}

/// Requirements that have to hold together, by label.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Term {
    namespaces: BTreeMap<String, Vec<Operator>>,
    pods: BTreeMap<String, Vec<Operator>>,
}

impl Term {
    /// Both together; None where they contradict each other.
    fn and(&self, other: &Self) -> Option<Self> {
        Some(Self {
            namespaces: both(&self.namespaces, &other.namespaces)?,
            pods: both(&self.pods, &other.pods)?,
        })
    }

    /// Whether everything that `other` matches is matched by this one, as far as their requirements show.
    fn covers(&self, other: &Self) -> bool {
        let within = |few: &BTreeMap<String, Vec<Operator>>, many: &BTreeMap<String, Vec<Operator>>| {
            few.iter().all(|(key, operators)| {
                many.get(key)
                    .is_some_and(|those| operators.iter().all(|operator| those.contains(operator)))
            })
        };
        within(&self.namespaces, &other.namespaces) && within(&self.pods, &other.pods)
    }

    /// The only requirement, if it is that a label has one of some values: where it stands, its key, and them.
    fn single_in(&self) -> Option<(bool, &str, &BTreeSet<String>)> {
        let (of_pods, labels) = match (self.namespaces.len(), self.pods.len()) {
            (1, 0) => (false, &self.namespaces),
            (0, 1) => (true, &self.pods),
            _ => return None,
        };
        let (key, operators) = labels.iter().next()?;
        match operators.as_slice() {
            [Operator::In(values)] => Some((of_pods, key, values)),
            _ => None,
        }
    }
}

fn both(
    one: &BTreeMap<String, Vec<Operator>>,
    other: &BTreeMap<String, Vec<Operator>>,
) -> Option<BTreeMap<String, Vec<Operator>>> {
    let mut out = one.clone();
    for (key, operators) in other {
        let mut all = out.remove(key).unwrap_or_default();
        all.extend(operators.iter().cloned());
        out.insert(key.clone(), simplified(all)?);
    }
    Some(out)
}

/// What several tests of one label come to; None where no value, and no absence, passes them all.
fn simplified(operators: Vec<Operator>) -> Option<Vec<Operator>> {
    let passes = |operator: &Operator, value: Option<&str>| match (operator, value) {
        (Operator::In(values), Some(value)) => values.contains(value),
        (Operator::NotIn(values), Some(value)) => !values.contains(value),
        (Operator::Exists, value) => value.is_some(),
        (Operator::DoesNotExist, value) => value.is_none(),
        (Operator::Like { part, text, negated }, Some(value)) => part.holds(value, text) != *negated,
        (Operator::Like { negated, .. }, None) => *negated,
        (Operator::In(_), None) => false,
        (Operator::NotIn(_), None) => true,
    };
    // A list of values is all that is left of the rest.
    let values = operators.iter().find_map(|operator| match operator {
        Operator::In(values) => Some(values),
        _ => None,
    });
    if let Some(values) = values {
        let left: BTreeSet<String> = values
            .iter()
            .filter(|value| operators.iter().all(|operator| passes(operator, Some(value))))
            .cloned()
            .collect();
        return (!left.is_empty()).then(|| vec![Operator::In(left)]);
    }
    let absent = operators.contains(&Operator::DoesNotExist);
    if absent {
        let passes = operators.iter().all(|operator| passes(operator, None));
        return passes.then(|| vec![Operator::DoesNotExist]);
    }
    let unique: BTreeSet<Operator> = operators.into_iter().collect();
    Some(unique.into_iter().collect())
}

/// The conjunctions of an expression, or of its contrary.
fn terms(expression: &Expression, negated: bool) -> Result<Vec<Term>, TooManyTerms> {
    match expression {
        Expression::All | Expression::Global => Ok(constant(!negated)),
        Expression::Label(name, test) => Ok(literal(name, test, negated)),
        Expression::Not(inner) => terms(inner, !negated),
        Expression::And(parts) if !negated => all_of(parts, negated),
        Expression::Or(parts) if negated => all_of(parts, negated),
        Expression::And(parts) | Expression::Or(parts) => any_of(parts, negated),
    }
}

fn all_of(parts: &[Expression], negated: bool) -> Result<Vec<Term>, TooManyTerms> {
    let mut out = constant(true);
    for part in parts {
        let terms = terms(part, negated)?;
        let product = out
            .iter()
            .flat_map(|one| terms.iter().filter_map(|other| one.and(other)));
        // Each side has at most as many as there may be.
        out = reduced(product.collect())?;
    }
    Ok(out)
}

fn any_of(parts: &[Expression], negated: bool) -> Result<Vec<Term>, TooManyTerms> {
    let mut out = Vec::new();
    for part in parts {
        out.extend(terms(part, negated)?);
        if out.len() > 4 * MOST_TERMS {
            out = reduced(out)?;
        }
    }
    reduced(out)
}

/// Without those that others cover, and with the values of one label together.
fn reduced(mut terms: Vec<Term>) -> Result<Vec<Term>, TooManyTerms> {
    let mut values: BTreeMap<(bool, String), BTreeSet<String>> = BTreeMap::new();
    terms.retain(|term| match term.single_in() {
        None => true,
        Some((of_pods, key, more)) => {
            let values = values.entry((of_pods, key.to_owned())).or_default();
            values.extend(more.iter().cloned());
            false
        }
    });
    terms.extend(values.into_iter().map(|((of_pods, key), values)| {
        let labels = BTreeMap::from([(key, vec![Operator::In(values)])]);
        match of_pods {
            true => Term {
                pods: labels,
                ..Term::default()
            },
            false => Term {
                namespaces: labels,
                ..Term::default()
            },
        }
    }));
    terms.sort();
    terms.dedup();
    let mut kept: Vec<Term> = Vec::with_capacity(terms.len().min(MOST_TERMS));
    // What covers another has no more requirements, so it comes first.
    terms.sort_by_key(|term| {
        let count = |labels: &BTreeMap<String, Vec<Operator>>| labels.values().map(Vec::len).sum::<usize>();
        count(&term.namespaces) + count(&term.pods)
    });
    for term in terms {
        if kept.iter().any(|other| other.covers(&term)) {
            continue;
        }
        if kept.len() == MOST_TERMS {
            return Err(TooManyTerms);
        }
        kept.push(term);
    }
    kept.sort();
    Ok(kept)
}

fn constant(holds: bool) -> Vec<Term> {
    if holds { vec![Term::default()] } else { Vec::new() }
}

/// What a pod has to have for one test to hold (TIERS 96, 96.1).
fn literal(name: &str, test: &Test, negated: bool) -> Vec<Term> {
    let term = |of_pods: bool, key: String, always: bool| {
        let Some(operator) = operator(test, negated) else {
            // Nothing is in an empty set.
            return constant(matches!(test, Test::NotIn(_)) != negated);
        };
        match operator {
            Operator::Exists if always => return constant(true),
            Operator::DoesNotExist if always => return constant(false),
            _ => {}
        }
        let labels = BTreeMap::from([(key, vec![operator])]);
        vec![match of_pods {
            true => Term {
                pods: labels,
                ..Term::default()
            },
            false => Term {
                namespaces: labels,
                ..Term::default()
            },
        }]
    };
    match name {
        ORCHESTRATOR => {
            let expression = Expression::Label(name.to_owned(), test.clone());
            constant(expression.matches(&|_: &str| Some(KUBERNETES)) != negated)
        }
        NAMESPACE => term(false, NAMESPACE_NAME_LABEL.to_owned(), true),
        ACCOUNT => term(true, account_name_key(), true),
        _ => {
            if let Some(key) = name.strip_prefix(OF_NAMESPACE) {
                match key {
                    NAME => term(false, NAMESPACE_NAME_LABEL.to_owned(), true),
                    key => term(false, key.to_owned(), false),
                }
            } else if let Some(key) = name.strip_prefix(OF_ACCOUNT) {
                term(true, format!("{ACCOUNT_LABEL}{key}"), key == NAME)
            } else {
                term(true, name.to_owned(), false)
            }
        }
    }
}

/// A test of a label, or its contrary; None for one that does not depend on the label, because its set is empty.
fn operator(test: &Test, negated: bool) -> Option<Operator> {
    let like = |part, text: &String| match (text.as_str(), negated) {
        ("", false) => Operator::Exists,
        ("", true) => Operator::DoesNotExist,
        _ => Operator::Like {
            part,
            text: text.clone(),
            negated,
        },
    };
    Some(match test {
        Test::Present if negated => Operator::DoesNotExist,
        Test::Present => Operator::Exists,
        Test::In(values) | Test::NotIn(values) if values.is_empty() => return None,
        Test::In(values) if !negated => Operator::In(values.clone()),
        Test::NotIn(values) if negated => Operator::In(values.clone()),
        Test::In(values) | Test::NotIn(values) => Operator::NotIn(values.clone()),
        Test::Contains(text) => like(Part::Anywhere, text),
        Test::StartsWith(text) => like(Part::Start, text),
        Test::EndsWith(text) => like(Part::End, text),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use proptest::prelude::*;
    use ringwall_policy::Labels;

    use super::{super::selector::parse, *};

    fn words(selector: &str) -> Vec<String> {
        let side = |selector: &Selector| {
            let words = selector.requirements.iter().map(|requirement| {
                let key = &requirement.key;
                match &requirement.operator {
                    Operator::In(values) => format!("{key} in {values:?}"),
                    Operator::NotIn(values) => format!("{key} not in {values:?}"),
                    Operator::Exists => key.clone(),
                    Operator::DoesNotExist => format!("!{key}"),
                    Operator::Like { part, text, negated } => {
                        format!("{}{key} {part:?} {text}", if *negated { "!" } else { "" })
                    }
                }
            });
            words.collect::<Vec<_>>().join(" && ")
        };
        let selections = pods(&parse(selector).unwrap()).unwrap();
        selections
            .iter()
            .map(|selection| format!("[{}] [{}]", side(&selection.namespaces), side(&selection.pods)))
            .collect()
    }

    #[test]
    fn keys_lead_to_the_labels_of_namespace_account_and_pod() {
        for (selector, expected) in [
            ("role == 'db'", r#"[] [role in {"db"}]"#),
            (
                "projectcalico.org/namespace == 'a'",
                r#"[kubernetes.io/metadata.name in {"a"}] []"#,
            ),
            (
                "pcns.projectcalico.org/name == 'a'",
                r#"[kubernetes.io/metadata.name in {"a"}] []"#,
            ),
            ("pcns.team != 'a'", r#"[team not in {"a"}] []"#),
            ("pcns.pcns.team == 'a'", r#"[pcns.team in {"a"}] []"#),
            ("has(pcsa.team)", "[] [serviceaccount:team]"),
            (
                "projectcalico.org/serviceaccount in {'a'}",
                r#"[] [serviceaccount:projectcalico.org/name in {"a"}]"#,
            ),
            (
                "pcsa.projectcalico.org/name == 'a'",
                r#"[] [serviceaccount:projectcalico.org/name in {"a"}]"#,
            ),
            ("has(projectcalico.org/namespace)", "[] []"),
            ("has(projectcalico.org/serviceaccount)", "[] []"),
            ("projectcalico.org/orchestrator == 'k8s'", "[] []"),
            ("a contains 'x'", "[] [a Anywhere x]"),
            ("!a starts with 'x'", "[] [!a Start x]"),
            ("a ends with ''", "[] [a]"),
            ("!a ends with ''", "[] [!a]"),
            ("all()", "[] []"),
            ("a in {} || b not in {}", "[] []"),
        ] {
            assert_eq!(words(selector), [expected], "{selector}");
        }
        for nothing in [
            "!all()",
            "!has(projectcalico.org/namespace)",
            "projectcalico.org/orchestrator != 'k8s'",
            "a in {}",
            "!a not in {}",
            "a == 'x' && a == 'y'",
            "a == 'x' && a != 'x'",
            "a == 'x' && !has(a)",
            "a == 'x' && a starts with 'y'",
            "has(a) && !has(a)",
            "a contains 'x' && !has(a)",
        ] {
            assert_eq!(words(nothing), [""; 0], "{nothing}");
        }
    }

    #[test]
    fn what_is_covered_or_can_be_said_at_once_is_one_term() {
        assert_eq!(
            words("a == 'x' || a == 'y' || a in {'z'}"),
            [r#"[] [a in {"x", "y", "z"}]"#]
        );
        assert_eq!(words("a == 'x' && b == 'y' || b == 'y'"), [r#"[] [b in {"y"}]"#]);
        assert_eq!(words("a == 'x' || all()"), ["[] []"]);
        assert_eq!(
            words("a in {'x', 'y'} && a in {'y', 'z'}"),
            [r#"[] [a in {"y"}]"#]
        );
        assert_eq!(words("!(a == 'x' || has(b))"), [r#"[] [a not in {"x"} && !b]"#]);
    }

    #[test]
    fn too_many_terms_are_refused() {
        let product = |parts: usize| {
            let parts: Vec<String> = (0..parts).map(|n| format!("(has(a{n}) || has(b{n}))")).collect();
            pods(&parse(&parts.join(" && ")).unwrap()).map(|terms| terms.len())
        };
        assert_eq!(product(8), Ok(256));
        assert_eq!(product(9), Err(TooManyTerms));
        assert_eq!(product(40), Err(TooManyTerms));
        let sum = |parts: usize| {
            let parts: Vec<String> = (0..parts).map(|n| format!("has(a{n})")).collect();
            pods(&parse(&parts.join(" || ")).unwrap()).map(|terms| terms.len())
        };
        assert_eq!(sum(256), Ok(256));
        assert_eq!(sum(257), Err(TooManyTerms));
        // Values of one label are one term.
        let values: Vec<String> = (0..5000).map(|n| format!("a == '{n}'")).collect();
        assert_eq!(pods(&parse(&values.join(" || ")).unwrap()).unwrap().len(), 1);
    }

    /// Whether a selection matches, by the words of the API.
    fn selected(selection: &PodSelection, namespace: &Labels, pod: &Labels) -> bool {
        let side = |selector: &Selector, labels: &Labels| {
            selector.requirements.iter().all(|requirement| {
                let value = labels.get(&requirement.key).map(String::as_str);
                match (&requirement.operator, value) {
                    (Operator::In(values), value) => value.is_some_and(|it| values.contains(it)),
                    (Operator::NotIn(values), value) => value.is_none_or(|it| !values.contains(it)),
                    (Operator::Exists, value) => value.is_some(),
                    (Operator::DoesNotExist, value) => value.is_none(),
                    (Operator::Like { part, text, negated }, value) => {
                        value.is_some_and(|it| part.holds(it, text)) != *negated
                    }
                }
            })
        };
        side(&selection.namespaces, namespace) && side(&selection.pods, pod)
    }

    fn text() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["", "x", "xy", "yx", "k8s", "ns"]).prop_map(str::to_owned)
    }

    fn expression() -> impl Strategy<Value = Expression> {
        let values = || prop::collection::btree_set(text(), 0..3);
        let test = prop_oneof![
            Just(Test::Present),
            values().prop_map(Test::In),
            values().prop_map(Test::NotIn),
            text().prop_map(Test::Contains),
            text().prop_map(Test::StartsWith),
            text().prop_map(Test::EndsWith),
        ];
        let keys = ["a", "b", "pcns.a", "pcsa.a", NAMESPACE, ACCOUNT, ORCHESTRATOR];
        let label = (prop::sample::select(keys.to_vec()), test)
            .prop_map(|(key, test)| Expression::Label(key.to_owned(), test));
        let leaf = prop_oneof![8 => label, 1 => Just(Expression::All)];
        leaf.prop_recursive(4, 16, 3, |inner| {
            prop_oneof![
                inner.clone().prop_map(Expression::negated),
                prop::collection::vec(inner.clone(), 1..4).prop_map(Expression::And),
                prop::collection::vec(inner, 1..4).prop_map(Expression::Or),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// What is lowered matches the pods that the expression matches.
        #[test]
        fn lowering_changes_no_answer(
            expression in expression(),
            a in prop::option::of(text()),
            b in prop::option::of(text()),
            of_namespace in prop::option::of(text()),
            of_account in prop::option::of(text()),
        ) {
            let label = |key: &str| match key {
                "a" => a.as_deref(),
                "b" => b.as_deref(),
                "pcns.a" => of_namespace.as_deref(),
                "pcsa.a" => of_account.as_deref(),
                NAMESPACE => Some("ns"),
                ACCOUNT => Some("x"),
                _ => Some(KUBERNETES),
            };
            let expected = expression.matches(&label);
            let labels = |pairs: &[(&str, Option<&String>)]| -> Labels {
                let present = pairs.iter().filter_map(|(key, value)| Some(((*key).to_owned(), (*value)?.clone())));
                present.collect()
            };
            let (name, account) = ("ns".to_owned(), "x".to_owned());
            let namespace = labels(&[(NAMESPACE_NAME_LABEL, Some(&name)), ("a", of_namespace.as_ref())]);
            let pod = labels(&[
                ("a", a.as_ref()),
                ("b", b.as_ref()),
                ("serviceaccount:a", of_account.as_ref()),
                (&account_name_key(), Some(&account)),
            ]);
            let selections = pods(&expression).unwrap();
            let found = selections.iter().any(|selection| selected(selection, &namespace, &pod));
            prop_assert_eq!(found, expected, "{:?}", selections);
        }
    }
}
