//! Who reaches which port of which Service, for tables of many sources.

use std::collections::BTreeMap;

use ringwall_analyse::{
    flow::{self, EndName},
    judge::{EndClass, Fate, Judge},
    services::{Directory, Joint},
};
use ringwall_policy::{
    Cluster, ObjectKey,
    services::{Service, ServiceKind, ServicePort, Services},
};

/// Pods that policies apply to: those that run, on a network of their own.
pub(crate) fn sources(cluster: &Cluster) -> impl Iterator<Item = &ObjectKey> {
    let pods = cluster.pods.values();
    let pods = pods.filter(|pod| !pod.finished && !pod.host_network);
    pods.map(|pod| &pod.key)
}

/// A port of a Service.
pub(crate) struct Column<'a> {
    pub(crate) service: &'a Service,
    pub(crate) port: &'a ServicePort,
}

impl Column<'_> {
    /// As tables name it.
    pub(crate) fn words(&self) -> String {
        let number = format!("{}/{}", self.port.port, self.port.protocol.name());
        match self.port.name.as_str() {
            "" => format!("svc:{} {number}", self.service.key),
            name => format!("svc:{} {number} ({name})", self.service.key),
        }
    }
}

/// What a source reaches of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) verdict: Joint,
    /// Endpoints.
    pub(crate) backends: usize,
    /// How many of them are reached.
    pub(crate) allowed: usize,
}

/// Sources that every policy treats alike reach the same, if they are on one node and have the same families.
type Alike = ([EndClass; 2], Option<String>, [bool; 2]);

/// Asks for one state who reaches which port of which Service.
pub(crate) struct Reach<'a> {
    judge: Judge,
    directory: Directory<'a>,
    columns: Vec<Column<'a>>,
    cluster: &'a Cluster,
    known: BTreeMap<Alike, Vec<Result<Reached, String>>>,
}

impl<'a> Reach<'a> {
    /// The ports that are `asked` for, of all Services but ExternalName.
    ///
    /// # Errors
    /// The policies do not compile.
    pub(crate) fn of(
        cluster: &'a Cluster,
        services: &'a Services,
        asked: impl Fn(&Service, &ServicePort) -> bool,
    ) -> anyhow::Result<Self> {
        let services_with_ports = services.services.values().map(AsRef::as_ref);
        let columns = services_with_ports
            .filter(|service: &&Service| !matches!(service.kind, ServiceKind::ExternalName(_)))
            .flat_map(|service| service.ports.iter().map(move |port| Column { service, port }))
            .filter(|column| asked(column.service, column.port))
            .collect();
        Ok(Self {
            judge: Judge::new(cluster)?,
            directory: Directory::new(cluster, services),
            columns,
            cluster,
            known: BTreeMap::new(),
        })
    }

    /// What is asked about.
    pub(crate) fn columns(&self) -> &[Column<'a>] {
        &self.columns
    }

    /// What a source reaches of each column; an error where they have no family in common.
    pub(crate) fn by_source(&mut self, src: &EndName) -> Result<Vec<Result<Reached, String>>, String> {
        let (end, _) = self.judge.ends(self.cluster, src, src)?;
        let pod = self.judge.pod(&end).and_then(|key| self.cluster.pods.get(&key));
        let families = match (src, pod) {
            (EndName::Pod(_), Some(pod)) => {
                let has =
                    |v4: bool| pod.addresses.is_empty() || pod.addresses.iter().any(|it| it.is_ipv4() == v4);
                [has(true), has(false)]
            }
            _ => {
                let v4 = end.address.is_some_and(|address| address.is_ipv4());
                [v4, !v4]
            }
        };
        // Endpoints are their own peers, so they are like no other.
        let behind = pod.is_some_and(|pod| {
            let selects = |service: &Service| {
                let mut labels = service.selector.iter();
                service.key.namespace == pod.key.namespace
                    && labels.all(|(key, value)| pod.labels.get(key) == Some(value))
            };
            self.columns.iter().any(|column| selects(column.service))
        });
        let alike = (
            self.judge.class(&end, true),
            pod.and_then(|pod| pod.node.clone()),
            families,
        );
        if let Some(known) = self.known.get(&alike).filter(|_| !behind) {
            return Ok(known.clone());
        }
        let reached: Vec<Result<Reached, String>> = self
            .columns
            .iter()
            .map(|column| self.reached(src, column))
            .collect();
        if !behind {
            self.known.insert(alike, reached.clone());
        }
        Ok(reached)
    }

    fn reached(&self, src: &EndName, column: &Column<'_>) -> Result<Reached, String> {
        let dst = EndName::Service(column.service.key.clone());
        let asked = flow::Service::new(column.port.protocol.number(), Some(column.port.port))?;
        let name = (column.service.kind == ServiceKind::Headless).then_some(column.port.name.as_str());
        let name = name.filter(|name| !name.is_empty());
        let resolved = self.directory.resolve(&self.judge, (src, &dst), asked, name)?;
        let Some(resolved) = resolved else {
            return Err(format!("{dst} is no Service"));
        };
        let (verdict, answers) = self.directory.judge(&self.judge, src, &resolved)?;
        Ok(Reached {
            verdict,
            backends: answers.len(),
            allowed: answers
                .iter()
                .filter(|answer| answer.fate() == Fate::Allow)
                .count(),
        })
    }
}
