//! The result of the plugins before: which interfaces they made, and the pod's addresses.

use std::{collections::BTreeSet, net::IpAddr};

use ringwall_messages::cni::Attachment;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
struct PreviousResult {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Assigned>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    name: String,
    /// Empty for an interface of the host.
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Assigned {
    /// With the length of its prefix.
    address: String,
    /// Index of the interface that has it, if the plugin says.
    interface: Option<usize>,
}

/// What the dataplane has to know, of the container's id, `CNI_ARGS` and the previous result.
///
/// # Errors
/// In words, what is missing.
pub(crate) fn attachment(container: String, arguments: &str, previous: &Value) -> Result<Attachment, String> {
    let result: PreviousResult =
        serde_json::from_value(previous.clone()).map_err(|error| error.to_string())?;
    let host_interfaces: Vec<String> = result
        .interfaces
        .iter()
        .filter(|interface| interface.sandbox.is_empty())
        .map(|interface| interface.name.clone())
        .collect();
    if host_interfaces.is_empty() {
        return Err("it names no interface of the host".to_owned());
    }
    let of_pod = |assigned: &&Assigned| {
        let holder = assigned.interface.and_then(|index| result.interfaces.get(index));
        holder.is_none_or(|interface| !interface.sandbox.is_empty())
    };
    let addresses = result
        .ips
        .iter()
        .filter(of_pod)
        .map(|assigned| {
            let address = assigned.address.split('/').next().unwrap_or_default();
            address
                .parse::<IpAddr>()
                .map_err(|_| format!("`{}` is no address", assigned.address))
        })
        .collect::<Result<BTreeSet<IpAddr>, String>>()?;
    if addresses.is_empty() {
        return Err("it gives the pod no address".to_owned());
    }
    let argument = |wanted: &str| {
        arguments
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == wanted)
            .map(|(_, value)| value)
    };
    let uid = argument("K8S_POD_UID").map(str::to_owned);
    let pod = argument("K8S_POD_NAMESPACE")
        .zip(argument("K8S_POD_NAME"))
        .map(|(namespace, name)| format!("{namespace}/{name}"));
    Ok(Attachment {
        container,
        pod,
        uid,
        host_interfaces,
        addresses,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use super::*;
    use serde_json::json;

    fn of(previous: &Value) -> Result<Attachment, String> {
        attachment(
            "c1".to_owned(),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1",
            previous,
        )
    }

    #[test]
    fn a_bridge_and_a_veth_are_the_hosts_and_the_addresses_are_the_pods() {
        let found = of(&json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "cni0", "mac": "00:11:22:33:44:55"},
                {"name": "veth1", "mac": "00:11:22:33:44:56"},
                {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/run/netns/x"},
            ],
            "ips": [
                {"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 2},
                {"address": "fd00::5/64", "interface": 2},
                {"address": "10.1.0.1/24", "interface": 0},
            ],
        }))
        .unwrap();
        assert_eq!(found.host_interfaces, ["cni0", "veth1"]);
        let wanted: BTreeSet<IpAddr> = ["10.1.0.5", "fd00::5"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(found.addresses, wanted);
        assert_eq!(found.pod.as_deref(), Some("shop/web-0"));
        assert_eq!(found.uid.as_deref(), Some("u-1"));
    }

    #[test]
    fn results_that_say_too_little_are_refused_in_words() {
        for (previous, words) in [
            (
                json!({"ips": [{"address": "10.1.0.5/24"}]}),
                "no interface of the host",
            ),
            (json!({"interfaces": [{"name": "veth1"}]}), "no address"),
            (
                json!({"interfaces": [{"name": "veth1"}], "ips": [{"address": "10.1.0/24"}]}),
                "`10.1.0/24` is no address",
            ),
            (json!({"interfaces": "veth1"}), "invalid type"),
        ] {
            let error = of(&previous).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
