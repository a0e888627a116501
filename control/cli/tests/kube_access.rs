//! The ways into an API server that a kubeconfig names: TLS with client certificates, and programs that make tokens.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a failed step is a failed test

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use ringwall_policy::Settings;
use ringwall_source::{
    feed::Feed,
    kube::{Access, Timing, start},
};
use ringwall_testbed::api_server::ApiServer;
use serde_json::json;
use tokio::task::JoinSet;
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
    start(&access, Settings::default(), quick(), None).await.unwrap()
}

fn quick() -> Timing {
    Timing {
        backoff_first: Duration::from_millis(10),
        backoff_most: Duration::from_millis(50),
        credentials_check: Duration::from_millis(20),
        renew_spacing: Duration::from_millis(100),
        exec_timeout: Duration::from_secs(10),
        ..Timing::default()
    }
}

async fn synced(feed: &Feed) {
    let mut states = feed.states.clone();
    tokio::time::timeout(PATIENCE, states.wait_for(Option::is_some))
        .await
        .unwrap_or_else(|_| panic!("never synced: {:#?}", feed.health.status()))
        .unwrap();
}

/// Waits for an error that names a certificate as the reason. Requests that wait for the same connection may end without one.
async fn refused(feed: &Feed) {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = feed.health.status();
        assert!(!status.synced);
        let error = status.last_error.unwrap_or_default();
        if error.to_lowercase().contains("certificate") || error.contains("Unknown") {
            return;
        }
        assert!(Instant::now() < until, "{error:?} is the last error");
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

/// Ends TLS in front of a plain server; clients need a certificate.
struct Front {
    address: SocketAddr,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Front {
    /// Shows a certificate of `server` and believes those of `clients`.
    fn acceptor(server: &Authority, clients: &Authority) -> TlsAcceptor {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(clients.issuer.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
        let (certificate, key) = server.issue("127.0.0.1");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    async fn start(to: SocketAddr, server: &Authority, clients: &Authority) -> Self {
        let acceptor = Arc::new(Mutex::new(Self::acceptor(server, clients)));
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let front = Self {
            address,
            acceptor: Arc::clone(&acceptor),
            connections: Arc::clone(&connections),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.lock().unwrap().clone();
                connections.lock().unwrap().spawn(async move {
                    // A client that is refused sees it itself.
                    if let Ok(mut inside) = acceptor.accept(stream).await {
                        let mut outside = tokio::net::TcpStream::connect(to).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                    }
                });
            }
        });
        front
    }

    /// Is another one from now on, as a server that was started anew.
    fn restart(&self, server: &Authority, clients: &Authority) {
        *self.acceptor.lock().unwrap() = Self::acceptor(server, clients);
        self.connections.lock().unwrap().abort_all();
    }
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
    let address = Front::start(server.address(), &ours, &ours).await.address;
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
        refused(&open(&kubeconfig, Some(context)).await).await;
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

/// A gateway with a client certificate, whose kubeconfig names files.
struct Tls {
    server: ApiServer,
    front: Front,
    dir: tempfile::TempDir,
    feed: Feed,
    namespaces: usize,
}

/// Certificate and key as a program of a kubeconfig hands them over.
fn credential(authority: &Authority) -> String {
    let (certificate, key) = authority.issue("ringwall");
    let status = json!({"clientCertificateData": certificate.pem(), "clientKeyData": key.serialize_pem()});
    json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status})
        .to_string()
}

impl Tls {
    async fn new(authority: &Authority) -> Self {
        Self::with_user(authority, |_| {
            "{client-certificate: me.crt, client-key: me.key}".to_owned()
        })
        .await
    }

    async fn with_user(authority: &Authority, user: impl FnOnce(&Path) -> String) -> Self {
        let server = server_with_a_namespace();
        let front = Front::start(server.address(), authority, authority).await;
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters:\n- {{name: here, cluster: {{server: \"https://{}\", certificate-authority: ca.crt}}}}\n\
             users:\n- {{name: me, user: {}}}\n\
             contexts:\n- {{name: test, context: {{cluster: here, user: me}}}}\n",
            front.address,
            user(dir.path()),
        );
        write(dir.path(), "ca.crt", &authority.issuer.pem());
        let (certificate, key) = authority.issue("ringwall");
        write(dir.path(), "me.crt", &certificate.pem());
        write(dir.path(), "me.key", &key.serialize_pem());
        let feed = open(&write(dir.path(), "kubeconfig", &kubeconfig), None).await;
        synced(&feed).await;
        Self {
            server,
            front,
            dir,
            feed,
            namespaces: 1,
        }
    }

    /// Something happens, and arrives.
    async fn follows(&mut self, when: &str) {
        self.namespaces += 1;
        let name = format!("n{}", self.namespaces);
        self.server
            .apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        let mut states = self.feed.states.clone();
        let there = states.wait_for(|state| {
            let cluster = state.as_ref().map(|state| &state.cluster);
            cluster.is_some_and(|cluster| cluster.namespaces.contains_key(&name))
        });
        let there = tokio::time::timeout(PATIENCE, there).await.map(drop);
        assert!(
            there.is_ok(),
            "{when}: {:#?} {:?}",
            self.feed.health.status(),
            self.feed.health.alarms()
        );
    }

    async fn cannot_connect(&self) {
        let until = Instant::now() + PATIENCE;
        while self.feed.health.status().watches.iter().any(|it| it.connected) {
            assert!(Instant::now() < until, "{:#?}", self.feed.health.status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn alarm(&self, words: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.feed.health.alarms().iter().any(|it| it.contains(words)) {
            assert!(
                Instant::now() < until,
                "no {words:?}: {:?}",
                self.feed.health.alarms()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn no_alarm(&self) {
        let until = Instant::now() + PATIENCE;
        while !self.feed.health.alarms().is_empty() {
            assert!(Instant::now() < until, "{:?}", self.feed.health.alarms());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_client_certificate_is_taken_up() {
    let old = Authority::new("old");
    let new = Authority::new("new");
    let mut tls = Tls::new(&old).await;
    tls.follows("at first").await;
    // Its files first, the server's trust then.
    let (certificate, key) = new.issue("ringwall");
    write(tls.dir.path(), "me.crt", &certificate.pem());
    write(tls.dir.path(), "me.key", &key.serialize_pem());
    tls.front.restart(&old, &new);
    tls.follows("renewed before the old one was refused").await;
    // The other way round: refused for a while.
    tls.front.restart(&old, &old);
    tls.cannot_connect().await;
    let (certificate, key) = old.issue("ringwall");
    write(tls.dir.path(), "me.crt", &certificate.pem());
    write(tls.dir.path(), "me.key", &key.serialize_pem());
    tls.follows("renewed after it").await;
    assert!(tls.feed.health.status().renewals >= 2);
    tls.no_alarm().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_authority_is_taken_up() {
    let old = Authority::new("old");
    let new = Authority::new("new");
    let mut tls = Tls::new(&old).await;
    // The right order: both are believed before the server shows a certificate of the new one.
    let both = old.issuer.pem() + &new.issuer.pem();
    write(tls.dir.path(), "ca.crt", &both);
    tls.front.restart(&new, &old);
    tls.follows("both are believed").await;
    // A server with an unknown certificate is not believed.
    let stranger = Authority::new("stranger");
    tls.front.restart(&stranger, &old);
    let until = Instant::now() + PATIENCE;
    loop {
        let error = tls.feed.health.status().last_error.unwrap_or_default();
        if error.to_lowercase().contains("certificate") {
            break;
        }
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tls.cannot_connect().await;
    write(tls.dir.path(), "ca.crt", &stranger.issuer.pem());
    tls.follows("now it is").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_are_no_use_leave_those_before_in_use() {
    let old = Authority::new("old");
    let mut tls = Tls::new(&old).await;
    let (certificate, key) = old.issue("ringwall");
    // A certificate whose key has not been written yet.
    write(tls.dir.path(), "me.crt", &certificate.pem());
    tls.alarm("the previous ones stay in use").await;
    tls.front.restart(&old, &old);
    tls.follows("with the ones before").await;
    write(tls.dir.path(), "me.key", &key.serialize_pem());
    tls.no_alarm().await;
    tls.front.restart(&old, &old);
    tls.follows("with the new ones").await;
    // The kubeconfig itself is half written.
    let kubeconfig = tls.dir.path().join("kubeconfig");
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    std::fs::write(&kubeconfig, &text[..text.len() / 2]).unwrap();
    tls.alarm("the previous ones stay in use").await;
    tls.front.restart(&old, &old);
    tls.follows("with half a kubeconfig").await;
    std::fs::write(&kubeconfig, &text).unwrap();
    tls.no_alarm().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_a_program_makes_is_made_again_when_it_is_refused() {
    let old = Authority::new("old");
    let new = Authority::new("new");
    let mut tls = Tls::with_user(&old, |dir| {
        write(dir, "credential", &credential(&old));
        let script = format!("#!/bin/sh\nexec cat {}/credential\n", dir.display());
        let program = write(dir, "program", &script);
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        format!(
            "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {}, interactiveMode: Never}}}}",
            program.display()
        )
    })
    .await;
    tls.follows("at first").await;
    // No file that the kubeconfig names changes.
    write(tls.dir.path(), "credential", &credential(&new));
    tls.front.restart(&old, &new);
    tls.follows("made again").await;
    tls.no_alarm().await;
}

/// Five rotations of everything, and four restarts of the server under each: what happens meanwhile arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_and_restarts_leave_nothing_behind() {
    let mut old = Authority::new("first");
    let mut tls = Tls::new(&old).await;
    let mut worst = Duration::ZERO;
    for rotation in 0..5 {
        let new = Authority::new("next");
        write(tls.dir.path(), "ca.crt", &(old.issuer.pem() + &new.issuer.pem()));
        let (certificate, key) = new.issue("ringwall");
        write(tls.dir.path(), "me.crt", &certificate.pem());
        write(tls.dir.path(), "me.key", &key.serialize_pem());
        for restart in 0..4 {
            tls.front.restart(&new, &new);
            let began = Instant::now();
            tls.follows(&format!("rotation {rotation}, restart {restart}"))
                .await;
            worst = worst.max(began.elapsed());
        }
        old = new;
    }
    println!("the latest change arrived after {worst:?}");
    tls.no_alarm().await;
}

/// As `server_with_a_namespace`, for a kubeconfig whose user is this.
async fn with_user(dir: &Path, server: &ApiServer, user: &str) -> Feed {
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters:\n- {{name: here, cluster: {{server: \"http://{}\"}}}}\n\
         users:\n- {{name: me, user: {user}}}\n\
         contexts:\n- {{name: test, context: {{cluster: here, user: me}}}}\n",
        server.address(),
    );
    open(&write(dir, "kubeconfig", &kubeconfig), None).await
}

/// Requires another token, breaks what is connected, and waits until it is connected with that.
async fn accepts(server: &ApiServer, feed: &Feed, token: &str) {
    let seen = server.seen().len();
    server.require_token(token);
    server.set_away(true);
    server.set_away(false);
    let until = Instant::now() + PATIENCE;
    loop {
        let with = server.seen().split_off(seen);
        let status = feed.health.status();
        if status.watches.iter().all(|it| it.connected)
            && with
                .iter()
                .any(|it| it.is_watch() && it.token.as_deref() == Some(token))
        {
            return;
        }
        assert!(Instant::now() < until, "never with {token}: {status:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_every_kind_are_taken_up_again() {
    let server = server_with_a_namespace();
    let dir = tempfile::tempdir().unwrap();
    server.require_token("one");

    // In a file.
    let file = write(dir.path(), "token", "one");
    let user = format!("{{tokenFile: {}}}", file.display());
    let feed = with_user(dir.path(), &server, &user).await;
    synced(&feed).await;
    write(dir.path(), "token", "two");
    accepts(&server, &feed, "two").await;
    drop(feed);

    // In the kubeconfig.
    let feed = with_user(dir.path(), &server, "{token: two}").await;
    synced(&feed).await;
    let kubeconfig = dir.path().join("kubeconfig");
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    std::fs::write(&kubeconfig, text.replace("token: two", "token: three")).unwrap();
    accepts(&server, &feed, "three").await;
    drop(feed);

    // Made by a program that names no end of it: run again where the token is refused.
    write(dir.path(), "made", "three");
    let script = write(
        dir.path(),
        "program",
        &format!(
            "#!/bin/sh\necho \"{{kind: ExecCredential, status: {{token: $(cat {}/made)}}}}\"\n",
            dir.path().display()
        ),
    );
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    let exec = |more: &str| {
        format!(
            "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {}, interactiveMode: Never{more}}}}}",
            script.display()
        )
    };
    let feed = with_user(dir.path(), &server, &exec("")).await;
    synced(&feed).await;
    write(dir.path(), "made", "four");
    accepts(&server, &feed, "four").await;
    drop(feed);

    // Or that says when it ends: run again before.
    let script_with_end = format!(
        "#!/bin/sh\necho \"{{kind: ExecCredential, status: {{token: $(cat {}/made), \
         expirationTimestamp: '2020-01-01T00:00:00Z'}}}}\"\n",
        dir.path().display()
    );
    write(dir.path(), "program", &script_with_end);
    let feed = with_user(dir.path(), &server, &exec("")).await;
    synced(&feed).await;
    let until = Instant::now() + PATIENCE;
    while feed.health.status().renewals < 2 {
        assert!(Instant::now() < until, "{:#?}", feed.health.status());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = feed.health.status();
    assert_eq!(
        (status.relists, status.errors),
        (0, 0),
        "a renewal disturbs no watch"
    );
    drop(feed);

    // One whose tokens are refused again and again is not run for each refusal.
    let runs = dir.path().join("runs");
    let count = || std::fs::read_to_string(&runs).unwrap_or_default().len();
    write(
        dir.path(),
        "program",
        &format!(
            "#!/bin/sh\nprintf x >> {}\necho '{{kind: ExecCredential, status: {{token: refused}}}}'\n",
            runs.display()
        ),
    );
    let access = Access::Kubeconfig {
        file: dir.path().join("kubeconfig"),
        context: None,
    };
    let timing = Timing {
        renew_spacing: Duration::from_secs(3600),
        ..quick()
    };
    let feed = start(&access, Settings::default(), timing, None).await.unwrap();
    let until = Instant::now() + PATIENCE;
    while feed.health.status().errors < 40 || count() < 2 {
        assert!(
            Instant::now() < until,
            "{} runs, {:#?}",
            count(),
            feed.health.status()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(count(), 2, "at the start, and at the first refusal");
    drop(feed);

    // And one that hangs holds nothing up for longer than its time.
    write(dir.path(), "program", "#!/bin/sh\nexec sleep 600\n");
    let timing = Timing {
        exec_timeout: Duration::from_millis(200),
        ..quick()
    };
    let error = start(&access, Settings::default(), timing, None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("longer than 0.2 s"), "{error}");
}
