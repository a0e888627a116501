//! The ways into an API server that a kubeconfig names: TLS with client certificates, and programs that make tokens.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a failed step is a failed test

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use ringwall::{
    cluster::Settings,
    source::{
        feed::Feed,
        kube::{Access, Timing, start},
    },
};
use ringwall_testbed::api_server::ApiServer;
use serde_json::json;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
        server::WebPkiClientVerifier,
    },
};

const PATIENCE: Duration = Duration::from_secs(20);

fn server_with_a_namespace() -> ApiServer {
    let server = ApiServer::start().unwrap();
    server.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}));
    server
}

async fn open(kubeconfig: &Path, context: Option<&str>) -> Feed {
    let access = Access::Kubeconfig {
        file: kubeconfig.to_owned(),
        context: context.map(str::to_owned),
    };
    let timing = Timing {
        backoff_first: Duration::from_millis(10),
        backoff_most: Duration::from_millis(50),
        ..Timing::default()
    };
    start(&access, Settings::default(), timing, None).await.unwrap()
}

async fn synced(feed: &Feed) {
    let mut states = feed.states.clone();
    tokio::time::timeout(PATIENCE, states.wait_for(Option::is_some))
        .await
        .unwrap_or_else(|_| panic!("never synced: {:#?}", feed.health.status()))
        .unwrap();
}

async fn refused(feed: &Feed) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = feed.health.status();
        assert!(!status.synced);
        if let Some(error) = status.last_error {
            return error;
        }
        assert!(Instant::now() < until, "no error");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Certificates of a little cluster.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// Ends TLS in front of a plain server; clients need a certificate of the authority.
async fn tls_in_front(server: SocketAddr, authority: &Authority) -> SocketAddr {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.issuer.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .unwrap();
    let (certificate, key) = authority.issue("127.0.0.1");
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that is refused sees it itself.
                if let Ok(mut inside) = acceptor.accept(stream).await {
                    let mut outside = tokio::net::TcpStream::connect(server).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                }
            });
        }
    });
    address
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificates_are_shown_and_the_servers_certificate_is_checked() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let server = server_with_a_namespace();
    let address = tls_in_front(server.address(), &ours).await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "ours.crt", &ours.issuer.pem());
    write(dir.path(), "theirs.crt", &theirs.issuer.pem());
    for (name, authority) in [("good", &ours), ("bad", &theirs)] {
        let (certificate, key) = authority.issue("ringwall");
        write(dir.path(), &format!("{name}.crt"), &certificate.pem());
        write(dir.path(), &format!("{name}.key"), &key.serialize_pem());
    }
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: good\n\
         clusters:\n\
         - {{name: known, cluster: {{server: \"https://{address}\", certificate-authority: ours.crt}}}}\n\
         - {{name: stranger, cluster: {{server: \"https://{address}\", certificate-authority: theirs.crt}}}}\n\
         users:\n\
         - {{name: good, user: {{client-certificate: good.crt, client-key: good.key}}}}\n\
         - {{name: bad, user: {{client-certificate: bad.crt, client-key: bad.key}}}}\n\
         contexts:\n\
         - {{name: good, context: {{cluster: known, user: good}}}}\n\
         - {{name: bad-client, context: {{cluster: known, user: bad}}}}\n\
         - {{name: bad-server, context: {{cluster: stranger, user: good}}}}\n"
    );
    let kubeconfig = write(dir.path(), "kubeconfig", &kubeconfig);

    let good = open(&kubeconfig, None).await;
    synced(&good).await;
    // All that it is going to ask has been asked.
    let until = Instant::now() + PATIENCE;
    while !good.health.status().watches.iter().all(|watch| watch.connected) {
        assert!(Instant::now() < until, "{:#?}", good.health.status());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(good);
    assert!(!server.seen().is_empty());
    for context in ["bad-client", "bad-server"] {
        let seen = server.seen().len();
        let error = refused(&open(&kubeconfig, Some(context)).await).await;
        assert!(
            error.to_lowercase().contains("certificate") || error.contains("Unknown"),
            "{context}: {error}"
        );
        assert_eq!(server.seen().len(), seen, "{context} reached the server");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_the_kubeconfig_makes_the_token() {
    let server = server_with_a_namespace();
    server.require_token("made-by-a-program");
    let dir = tempfile::tempdir().unwrap();
    let program = write(
        dir.path(),
        "token",
        "#!/bin/sh\necho '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\
         \"status\":{\"token\":\"made-by-a-program\"}}'\n",
    );
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters:\n- {{name: here, cluster: {{server: \"http://{}\"}}}}\n\
         users:\n- name: me\n  user:\n    exec: {{apiVersion: client.authentication.k8s.io/v1, command: {}, \
         interactiveMode: Never}}\n\
         contexts:\n- {{name: test, context: {{cluster: here, user: me}}}}\n",
        server.address(),
        program.display()
    );
    let kubeconfig = write(dir.path(), "kubeconfig", &kubeconfig);
    synced(&open(&kubeconfig, None).await).await;
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.token.as_deref() == Some("made-by-a-program"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_as_a_real_server_sends_them_are_understood() {
    let server = server_with_a_namespace();
    server.apply(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": "n1",
            "labels": {"kubernetes.io/hostname": "n1", "node-role.kubernetes.io/control-plane": ""},
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "projectcalico.org/IPv4Address": "192.0.2.1/24",
                "projectcalico.org/IPv4VXLANTunnelAddr": "10.0.0.1",
            },
        },
        "spec": {
            "podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd00::/64"], "providerID": "x://n1",
            "taints": [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}],
        },
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "Hostname", "address": "n1"},
            ],
            "capacity": {"cpu": "4", "memory": "16Gi"},
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {"kernelVersion": "6.1.0", "swap": {"capacity": 0}},
            "images": [{"names": ["a@sha256:0", "a:1"], "sizeBytes": 5}],
            "runtimeHandlers": [{"name": "", "features": {"recursiveReadOnlyMounts": true}}],
        },
    }));
    server.apply(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-5c9d", "generateName": "web-", "namespace": "a", "generation": 1,
            "labels": {"app": "web", "pod-template-hash": "5c9d"},
            "annotations": {"kubernetes.io/psp": "none"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "1", "controller": true}],
            "finalizers": ["x/y"], "deletionGracePeriodSeconds": 30,
        },
        "spec": {
            "volumes": [{"name": "t", "projected": {"defaultMode": 420, "sources": []}}],
            "initContainers": [{"name": "side", "image": "s", "restartPolicy": "Always", "ports": [{"containerPort": 15090, "name": "http-envoy", "protocol": "TCP"}]}],
            "containers": [{
                "name": "c", "image": "i:1", "imagePullPolicy": "Always", "resources": {"limits": {"cpu": "1"}},
                "ports": [{"containerPort": 8080, "hostPort": 80, "hostIP": "0.0.0.0", "name": "http", "protocol": "TCP"}],
                "terminationMessagePath": "/dev/termination-log",
            }],
            "nodeName": "n1", "dnsPolicy": "ClusterFirst", "serviceAccountName": "default", "priority": 0,
            "tolerations": [{"key": "x", "operator": "Exists", "tolerationSeconds": 300}], "a-field-of-tomorrow": 1,
        },
        "status": {
            "phase": "Running", "hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}],
            "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}],
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null}],
            "containerStatuses": [{"name": "c", "ready": true, "state": {"running": {}}}], "qosClass": "Burstable",
        },
    }));
    // Waiting for its address.
    server.apply(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pending", "namespace": "a"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Pending", "qosClass": "BestEffort"},
    }));
    server.apply(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {
            "name": "web", "namespace": "a", "generation": 2,
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        },
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": "http", "protocol": "TCP"}]}],
        },
    }));
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = write(dir.path(), "kubeconfig", &server.kubeconfig("t"));
    let feed = open(&kubeconfig, None).await;
    synced(&feed).await;
    let state = feed.states.borrow().clone().unwrap();
    assert!(state.problems.is_empty(), "{:#?}", state.problems);
    assert_eq!((state.cluster.pods.len(), state.cluster.policies.len()), (2, 1));
    let web = state
        .cluster
        .pods
        .values()
        .find(|pod| pod.key.name == "web-5c9d")
        .unwrap();
    assert_eq!(web.addresses.len(), 2);
    assert_eq!(web.named_ports.len(), 2);
    assert!(web.created.is_some() && !web.uid.is_empty());
    let node = state.cluster.nodes.values().next().unwrap();
    assert_eq!(node.pod_cidrs.len(), 2);
    assert!(
        node.addresses.contains(&"10.0.0.1".parse().unwrap()),
        "the tunnel's: {:?}",
        node.addresses
    );
}

/// The kernel's timers of the connections to a port, as /proc/net/tcp has them: 2 is keepalive.
fn timers(port: u16) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| {
            fields
                .get(2)
                .is_some_and(|remote| remote.ends_with(&format!(":{port:04X}")))
                && fields[3] == "01"
        })
        .map(|fields| fields[5].split(':').next().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_asks_whether_the_server_of_a_silent_watch_is_still_there() {
    let server = server_with_a_namespace();
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = write(dir.path(), "kubeconfig", &server.kubeconfig("t"));
    let feed = open(&kubeconfig, None).await;
    synced(&feed).await;
    let until = Instant::now() + PATIENCE;
    loop {
        let timers = timers(server.address().port());
        // Four watches, and perhaps an idle connection that lists were fetched on.
        if timers.len() >= 4 && timers.iter().all(|timer| timer == "02") {
            return;
        }
        assert!(Instant::now() < until, "{timers:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
