//! Namespaces, nodes and pods as an API server has them.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Map, Value, json};

use super::{Life, Pod, Stage, Synthetic, Workload, catalogue::Controller};

/// First network of the pods; node n has the n-th /24 from there.
const POD_BASE: u32 = 0x0a00_0000;
/// First address of the nodes.
const NODE_BASE: u32 = 0xac10_0001;
/// Node n has the n-th /64 from there.
const POD_BASE_V6: u128 = 0xfd00_0010 << 96;
const NODE_BASE_V6: u128 = (0xfd00_ac10 << 96) + 1;

impl Synthetic {
    pub(super) fn namespace_object(&self, place: usize) -> Value {
        let space = &self.namespaces[place];
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": space.name,
                "uid": uid(space.serial),
                "creationTimestamp": time(space.serial),
                "labels": {
                    "kubernetes.io/metadata.name": space.name,
                    "team": space.team,
                    "environment": space.environment,
                    "pod-security.kubernetes.io/enforce": if space.system { "privileged" } else { "baseline" },
                },
            },
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        });
        if space.life != Life::Active {
            object["metadata"]["deletionTimestamp"] = json!(time(self.serial));
            object["status"]["phase"] = json!("Terminating");
        }
        object
    }

    pub(super) fn node_object(&self, place: usize) -> Value {
        let zone = ["a", "b", "c"][place % 3];
        let mut networks = vec![format!("{}/24", Ipv4Addr::from(POD_BASE + ((place as u32) << 8)))];
        let mut addresses = vec![json!({"type": "InternalIP", "address": node_address(place)})];
        if self.spec.dual_stack {
            networks.push(format!(
                "{}/64",
                Ipv6Addr::from(POD_BASE_V6 + ((place as u128) << 64))
            ));
            addresses.push(json!({"type": "InternalIP", "address": node_address_v6(place)}));
        }
        addresses.push(json!({"type": "Hostname", "address": node_name(place)}));
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": node_name(place),
                "uid": uid(self.nodes[place].serial),
                "creationTimestamp": time(self.nodes[place].serial),
                "labels": {
                    "kubernetes.io/hostname": node_name(place),
                    "kubernetes.io/os": "linux",
                    "topology.kubernetes.io/zone": zone,
                },
            },
            "spec": {"podCIDR": networks[0], "podCIDRs": networks},
            "status": {"addresses": addresses, "conditions": [
                {"type": "Ready", "status": "True", "lastHeartbeatTime": time(u64::from(self.nodes[place].beats))},
            ]},
        })
    }

    /// None for one that is gone.
    pub(super) fn pod_object(&self, place: usize) -> Option<Value> {
        let pod = self.pods[place].as_ref()?;
        let workload = &self.workloads[pod.workload];
        let mut metadata = json!({
            "name": pod.name,
            "namespace": self.namespaces[workload.space].name,
            "uid": uid(pod.serial),
            "creationTimestamp": time(pod.serial),
            "labels": labels(pod, workload),
        });
        if pod.stage == Stage::Terminating {
            metadata["deletionTimestamp"] = json!(time(self.serial));
            metadata["deletionGracePeriodSeconds"] = json!(30);
        }
        let ports: Vec<Value> = workload
            .app
            .ports
            .iter()
            .map(|port| json!({"name": port.name, "containerPort": port.number, "protocol": port.protocol}))
            .collect();
        let mut spec = json!({
            "containers": [{
                "name": workload.app.name,
                "image": format!("registry.example/{}:v{}", workload.app.name, pod.version),
                "ports": ports,
            }],
        });
        if pod.host_network {
            spec["hostNetwork"] = json!(true);
        }
        if let Some(node) = pod.node {
            spec["nodeName"] = json!(node_name(node));
        }
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": spec,
            "status": self.pod_status(pod),
        });
        if self.spec.full {
            fill_in(&mut object, pod, workload);
        }
        Some(object)
    }

    fn pod_status(&self, pod: &Pod) -> Value {
        let phase = match pod.stage {
            Stage::Created | Stage::Scheduled => "Pending",
            Stage::Running | Stage::Ready | Stage::Terminating => "Running",
            Stage::Finished => "Succeeded",
        };
        let mut status = json!({"phase": phase});
        let Some(node) = pod
            .node
            .filter(|_| !matches!(pod.stage, Stage::Created | Stage::Scheduled))
        else {
            return status;
        };
        let mut addresses = Vec::new();
        if pod.host_network {
            addresses.push(node_address(node));
            if self.spec.dual_stack {
                addresses.push(node_address_v6(node));
            }
        } else if let Some(slot) = pod.slot {
            let last = u32::from(slot);
            addresses.push(Ipv4Addr::from(POD_BASE + ((node as u32) << 8) + last).to_string());
            if self.spec.dual_stack {
                let host = POD_BASE_V6 + ((node as u128) << 64) + u128::from(slot);
                addresses.push(Ipv6Addr::from(host).to_string());
            }
        }
        status["hostIP"] = json!(node_address(node));
        status["podIP"] = json!(addresses.first());
        status["podIPs"] = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        status
    }
}

fn node_name(place: usize) -> String {
    format!("node-{place:05}")
}

fn node_address(place: usize) -> String {
    Ipv4Addr::from(NODE_BASE + place as u32).to_string()
}

fn node_address_v6(place: usize) -> String {
    Ipv6Addr::from(NODE_BASE_V6 + place as u128).to_string()
}

fn labels(pod: &Pod, workload: &Workload) -> Value {
    let mut labels = Map::new();
    let mut add = |key: &str, value: &str| drop(labels.insert(key.to_owned(), json!(value)));
    add("app.kubernetes.io/name", workload.app.name);
    add("app.kubernetes.io/instance", &workload.instance);
    add("app.kubernetes.io/component", workload.app.component);
    add(
        "app.kubernetes.io/version",
        &format!("{}.{}", pod.version / 10, pod.version % 10),
    );
    let hash = format!("{:07x}", pod.template);
    match workload.app.controller {
        Controller::Deployment => add("pod-template-hash", &hash),
        Controller::DaemonSet => add("controller-revision-hash", &hash),
        Controller::StatefulSet => {
            add("controller-revision-hash", &hash);
            add("statefulset.kubernetes.io/pod-name", &pod.name);
        }
        Controller::Job => add("batch.kubernetes.io/job-name", &workload.instance),
    }
    if let Some(role) = pod.role {
        add("role", role);
    }
    if pod.canary {
        add("track", "canary");
    }
    Value::Object(labels)
}

/// What an API server's pod has besides, and nothing here needs: it is read all the same.
fn fill_in(object: &mut Value, pod: &Pod, workload: &Workload) {
    let began = time(pod.serial);
    object["metadata"]["generateName"] = json!(format!("{}-", workload.instance));
    object["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": workload.app.controller.owner(), "name": workload.instance,
        "uid": uid(pod.serial), "controller": true, "blockOwnerDeletion": true,
    }]);
    object["metadata"]["managedFields"] = managed_fields(&began);
    object["spec"]["serviceAccountName"] = json!(workload.app.name);
    object["spec"]["restartPolicy"] = json!("Always");
    object["spec"]["dnsPolicy"] = json!("ClusterFirst");
    object["spec"]["schedulerName"] = json!("default-scheduler");
    object["spec"]["tolerations"] = json!([
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
    ]);
    let token = json!({"name": "kube-api-access", "readOnly": true, "mountPath": "/var/run/secrets/token"});
    let container = &mut object["spec"]["containers"][0];
    container["resources"] =
        json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}});
    container["env"] = json!([
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
        {"name": "LOG_LEVEL", "value": "info"},
    ]);
    container["volumeMounts"] = json!([token]);
    container["livenessProbe"] =
        json!({"httpGet": {"path": "/healthz", "port": 8081, "scheme": "HTTP"}, "periodSeconds": 10});
    container["imagePullPolicy"] = json!("IfNotPresent");
    let ready = pod.stage == Stage::Ready;
    let condition = |kind: &str, is: bool| json!({"type": kind, "status": if is { "True" } else { "False" }, "lastTransitionTime": began});
    object["status"]["conditions"] = json!([
        condition("PodScheduled", pod.node.is_some()),
        condition("Initialized", pod.node.is_some()),
        condition("ContainersReady", ready),
        condition("Ready", ready),
    ]);
    object["status"]["startTime"] = json!(began);
    object["status"]["qosClass"] = json!("Burstable");
    object["status"]["containerStatuses"] = json!([{
        "name": workload.app.name, "ready": ready, "started": ready, "restartCount": 0,
        "image": format!("registry.example/{}:v{}", workload.app.name, pod.version),
        "imageID": format!("registry.example/{}@sha256:{:064x}", workload.app.name, pod.template),
        "containerID": format!("containerd://{:064x}", pod.serial),
        "state": {"running": {"startedAt": began}}, "lastState": {},
    }]);
}

/// Two managers, as after creation by a controller and the first report of the kubelet.
fn managed_fields(time: &str) -> Value {
    let container = json!({
        ".": {}, "f:env": {".": {}, "k:{\"name\":\"LOG_LEVEL\"}": {".": {}, "f:name": {}, "f:value": {}}},
        "f:image": {}, "f:imagePullPolicy": {}, "f:livenessProbe": {".": {}, "f:httpGet": {".": {}, "f:path": {}, "f:port": {}}},
        "f:name": {}, "f:ports": {".": {}, "k:{\"containerPort\":8080,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
        "f:resources": {".": {}, "f:limits": {".": {}, "f:memory": {}}, "f:requests": {".": {}, "f:cpu": {}, "f:memory": {}}},
    });
    json!([
        {"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1",
         "fieldsV1": {"f:metadata": {"f:generateName": {}, "f:labels": {".": {}, "f:app.kubernetes.io/name": {}, "f:pod-template-hash": {}},
                      "f:ownerReferences": {".": {}}}, "f:spec": {"f:containers": {"k:{\"name\":\"main\"}": container},
                      "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}}}},
        {"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1", "subresource": "status",
         "fieldsV1": {"f:status": {"f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:lastTransitionTime": {}, "f:status": {}}},
                      "f:containerStatuses": {}, "f:hostIP": {}, "f:phase": {}, "f:podIP": {}, "f:podIPs": {".": {}}, "f:startTime": {}}}},
    ])
}

pub(super) fn uid(serial: u64) -> String {
    format!("00000000-0000-4000-8000-{serial:012x}")
}

/// Serials count minutes of the years from 2025: later ones are later.
pub(super) fn time(serial: u64) -> String {
    const MONTHS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let (minute, hour, mut day) = (serial % 60, serial / 60 % 24, serial / 1440);
    let year = 2025 + day / 365;
    day %= 365;
    let mut month = 0;
    while day >= MONTHS[month] {
        day -= MONTHS[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}T{hour:02}:{minute:02}:00Z", month + 1, day + 1)
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_are_dates() {
        assert_eq!(time(0), "2025-01-01T00:00:00Z");
        assert_eq!(time(59 * 1440 + 61), "2025-03-01T01:01:00Z");
        assert_eq!(time(365 * 1440 - 1), "2025-12-31T23:59:00Z");
        assert_eq!(time(365 * 1440), "2026-01-01T00:00:00Z");
    }
}
