//! A cluster on a bed: pods with labels, policies, and who reaches whom now.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    BedError, Result,
    appliance::{Adoption, Appliance},
    manifests::{self, Labels, Pod},
    probe::{Attempt, Outcome, Service, attempt_all},
    topology::{Bed, GATEWAY, GATEWAY_V6, POD_CIDR, POD_CIDR_V6},
};

/// What the bed's cluster is to be.
#[derive(Clone, Debug)]
pub struct World {
    /// Labels of each namespace.
    pub namespaces: BTreeMap<String, Labels>,
    /// Each pod.
    pub pods: BTreeMap<String, Pod>,
    /// NetworkPolicies.
    pub policies: Vec<Value>,
    /// Addresses of nodes, besides those that every bed has.
    pub nodes: BTreeMap<String, Vec<IpAddr>>,
}

impl World {
    /// Every pod of a bed, labelled `app: NAME`, in namespaces without labels, without policies.
    pub fn of(bed: &Bed) -> Self {
        let mut world = Self {
            namespaces: BTreeMap::new(),
            pods: BTreeMap::new(),
            policies: Vec::new(),
            nodes: BTreeMap::new(),
        };
        for member in bed.pods.iter().filter(|member| !member.node) {
            let (namespace, name) = member.name.split_once('/').unwrap_or(("default", &member.name));
            world.namespaces.entry(namespace.to_owned()).or_default();
            world.pods.insert(
                member.name.clone(),
                Pod {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                    labels: manifests::labels([("app", name)]),
                    addresses: vec![member.v4.into(), member.v6.into()],
                    node: "node-a".to_owned(),
                    ports: Vec::new(),
                },
            );
        }
        world
    }

    /// Sets a label of a pod.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn label(&mut self, pod: &str, key: &str, value: &str) -> Result<()> {
        let pod = self
            .pods
            .get_mut(pod)
            .ok_or_else(|| BedError::other(format!("no pod {pod}"), "in the world"))?;
        pod.labels.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    /// Adds a policy from its `spec` in YAML-like JSON.
    pub fn policy(&mut self, namespace: &str, name: &str, spec: Value) {
        self.policies.push(json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace, "name": name},
            "spec": spec,
        }));
    }

    /// The objects.
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = vec![
            manifests::node("gateway", &[GATEWAY.into(), GATEWAY_V6.into()], &[]),
            manifests::node("node-a", &[], &[POD_CIDR, POD_CIDR_V6]),
        ];
        objects.extend(
            self.namespaces
                .iter()
                .map(|(name, labels)| manifests::namespace(name, labels)),
        );
        objects.extend(self.pods.values().map(Pod::object));
        objects.extend(self.policies.iter().cloned());
        let nodes = self.nodes.iter();
        objects.extend(nodes.map(|(name, addresses)| manifests::node(name, addresses, &[])));
        objects
    }

    /// Puts it in force on a running firewall.
    ///
    /// # Errors
    /// As [`Appliance::apply`].
    pub fn apply(&self, appliance: &Appliance) -> Result<Adoption> {
        appliance.apply(&self.objects())
    }
}

/// Tries each of `FROM TO SERVICE WANTED` over both families at once, and answers what was otherwise.
///
/// # Errors
/// A name is not of the bed, or a namespace cannot be entered.
pub fn differences(bed: &Bed, wanted: &[(&str, &str, Service, bool)]) -> Result<Vec<String>> {
    let mut attempts = Vec::new();
    for (from, to, service, allow) in wanted {
        let (source, server) = (bed.member(from)?, bed.member(to)?);
        for v6 in [false, true] {
            let attempt = Attempt {
                from: &source.ns,
                source: Some(source.address(v6)),
                to: server.address(v6),
                service: *service,
            };
            attempts.push((attempt, *from, *to, *allow, &server.name));
        }
    }
    let tried: Vec<_> = attempts.iter().map(|(attempt, ..)| *attempt).collect();
    let mut outcomes = attempt_all(&tried, Duration::from_millis(1300))?;
    // On a busy machine an answer may come late. What should be silent gets no second chance to be.
    let late: Vec<usize> = (0..tried.len())
        .filter(|index| attempts[*index].3 && outcomes[*index] == Outcome::Silence)
        .collect();
    let again: Vec<_> = late.iter().map(|index| tried[*index]).collect();
    for (index, outcome) in late.iter().zip(attempt_all(&again, Duration::from_secs(5))?) {
        outcomes[*index] = outcome;
    }
    Ok(outcomes
        .iter()
        .zip(&attempts)
        .filter(|(outcome, (_, _, _, allow, server))| match outcome {
            Outcome::Answered(name) => !allow || name.as_ref().is_some_and(|name| name != *server),
            Outcome::Silence => *allow,
            Outcome::Refused(_) => true,
        })
        .map(|(outcome, (attempt, from, to, allow, _))| {
            let word = if *allow { "an answer" } else { "silence" };
            format!(
                "{from} -> {to} ({}) {}: wanted {word}, got {outcome}",
                attempt.to, attempt.service
            )
        })
        .collect())
}

/// Tries until an address answers.
///
/// # Errors
/// It does not in time; a namespace cannot be entered.
pub fn wait_for_answer(
    bed: &Bed,
    from: &str,
    to: IpAddr,
    service: Service,
    within: Duration,
) -> Result<Duration> {
    let from = bed.member(from)?;
    let begin = Instant::now();
    while begin.elapsed() < within {
        let attempt = Attempt {
            from: &from.ns,
            source: None,
            to,
            service,
        };
        if attempt_all(&[attempt], Duration::from_millis(250))?
            .iter()
            .any(Outcome::answered)
        {
            return Ok(begin.elapsed());
        }
    }
    Err(BedError::other(
        format!("{} -> {to} {service}", from.name),
        format!("no answer within {within:?}"),
    ))
}
