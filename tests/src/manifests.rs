//! Kubernetes objects for what the bed holds, as JSON, which is YAML.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::{Value, json};

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// Labels from pairs.
pub fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// A Namespace.
pub fn namespace(name: &str, labels: &Labels) -> Value {
    let mut labels = labels.clone();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A Node with its internal addresses and pod networks.
pub fn node(name: &str, addresses: &[IpAddr], pod_cidrs: &[&str]) -> Value {
    let addresses: Vec<_> = addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDRs": pod_cidrs},
        "status": {"addresses": addresses},
    })
}

/// What a Pod object says.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// `spec.nodeName`.
    pub node: String,
    /// Container ports: name, number, protocol.
    pub ports: Vec<(String, u16, &'static str)>,
}

impl Pod {
    /// The object.
    pub fn object(&self) -> Value {
        let addresses: Vec<_> = self
            .addresses
            .iter()
            .map(|address| json!({"ip": address.to_string()}))
            .collect();
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|(name, number, protocol)| json!({"name": name, "containerPort": number, "protocol": protocol}))
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": self.labels},
            "spec": {
                "nodeName": self.node,
                "containers": [{"name": "main", "image": "registry.example/main", "ports": ports}],
            },
            "status": {
                "phase": "Running",
                "podIP": self.addresses.first().map(ToString::to_string),
                "podIPs": addresses,
            },
        })
    }
}

/// Several objects in one file.
pub fn file(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("---\n{object}\n")).collect()
}
