//! The HTTP client of the watches, from a kubeconfig or a service account.
//!
//! kube makes the same one, without keepalive: a watch whose server has vanished without a word (power, a cut cable, a
//! firewall that forgot the connection) would be noticed only when the watch should have ended. And it loses
//! `Retry-After`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{Response, header::RETRY_AFTER};
use hyper_util::{
    client::legacy::{Builder, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client,
    client::{Body, ClientBuilder, ConfigExt},
    config::{Config, KubeConfigOptions, Kubeconfig},
};
use ringwall_process::confine::SourceFiles;
use tower::{BoxError, ServiceBuilder, util::MapResultLayer};

use super::{Access, KubeError, Timing, exec, watch::chain};
use crate::decode::seconds_since_1970;

/// After so long without a word from the server's kernel it is asked for one.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// And again as often.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// After so many questions without answer the connection is dead: 25 seconds in all.
const KEEPALIVE_RETRIES: u32 = 3;

/// As long may what we sent stay without acknowledgement.
const UNACKNOWLEDGED: Duration = Duration::from_secs(25);

/// Where a pod finds the credentials of its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A client, and what it was made of.
pub(super) struct Built {
    pub(super) client: Client,
    /// The API server's address.
    pub(super) location: String,
    /// When its credentials expire, as far as they say.
    pub(super) valid_until: Option<SystemTime>,
    pub(super) fingerprint: Fingerprint,
}

/// Of every file that says who we are and whom to believe.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(blake3::Hash);

/// Takes the fingerprint. Blocks. A file that cannot be read differs from one that can.
pub(super) fn fingerprint(access: &Access) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    for file in made_of(access).0 {
        match std::fs::read(&file) {
            Ok(bytes) => {
                hasher.update(&(bytes.len() as u64).to_le_bytes());
                hasher.update(&bytes);
            }
            Err(_) => drop(hasher.update(&u64::MAX.to_le_bytes())),
        }
    }
    Fingerprint(hasher.finalize())
}

/// The files that credentials are made of, and whether a program makes some of them.
///
/// The kubeconfig first, then what it names, of any user and cluster: which of them count is the context's business. A
/// kubeconfig that cannot be read names nothing.
fn made_of(access: &Access) -> (Vec<PathBuf>, bool) {
    let Access::Kubeconfig { file, .. } = access else {
        let files = ["token", "ca.crt"].map(|name| Path::new(SERVICE_ACCOUNT).join(name));
        return (files.to_vec(), false);
    };
    let mut runs_programs = false;
    let mut named = BTreeSet::new();
    if let Ok(kubeconfig) = Kubeconfig::read_from(file) {
        for cluster in kubeconfig.clusters.into_iter().filter_map(|it| it.cluster) {
            named.extend(cluster.certificate_authority);
        }
        for user in kubeconfig.auth_infos.into_iter().filter_map(|it| it.auth_info) {
            named.extend(user.client_certificate);
            named.extend(user.client_key);
            named.extend(user.token_file);
            runs_programs |= user.exec.is_some() || user.auth_provider.is_some();
        }
    }
    let named = named.into_iter().map(PathBuf::from);
    (
        std::iter::once(file.clone()).chain(named).collect(),
        runs_programs,
    )
}

/// What a process has to read for it.
pub(crate) fn needs(access: &Access) -> SourceFiles {
    let (files, runs_programs) = made_of(access);
    SourceFiles::of_credentials(files, runs_programs)
}

/// Makes a client of what the files say now.
///
/// # Errors
/// The kubeconfig, the service account or the credentials cannot be used.
pub(super) async fn build(access: &Access, timing: &Timing) -> Result<Built, KubeError> {
    // Before anything is read: what changes in between is seen as a change later.
    let of = access.clone();
    let fingerprint = blocking("fingerprint", move || fingerprint(&of)).await?;
    let mut config = configuration(access).await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Ours knows when a pause is due.
    config.default_retry = false;
    let location = config.cluster_url.to_string();
    let unusable = |reason: String| KubeError::Credentials {
        location: location.clone(),
        reason,
    };
    let mut valid_until = None;
    if let Some(program) = config.auth_info.exec.take() {
        let limit = timing.exec_timeout;
        let made = blocking("exec", move || exec::run(&program, limit)).await?;
        let made = made.map_err(unusable)?;
        valid_until = made.expiration_timestamp.as_deref().and_then(time);
        let auth = &mut config.auth_info;
        auth.token = made.token.map(Into::into).or(auth.token.take());
        if let (Some(certificate), Some(key)) = (made.client_certificate_data, made.client_key_data) {
            auth.client_certificate_data = Some(STANDARD.encode(certificate));
            auth.client_key_data = Some(STANDARD.encode(key).into());
        }
    }
    // kube runs the programs of old providers in here.
    let client = tokio::time::timeout(timing.exec_timeout, blocking("client", move || client(config)))
        .await
        .map_err(|_| unusable("the provider's program takes too long".to_owned()))??
        .map_err(|error| unusable(chain(&error)))?;
    Ok(Built {
        client,
        location,
        valid_until,
        fingerprint,
    })
}

/// Runs what blocks elsewhere.
async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, KubeError> {
    let panicked = |error| KubeError::Credentials {
        location: what.to_owned(),
        reason: format!("{error}"),
    };
    tokio::task::spawn_blocking(work).await.map_err(panicked)
}

fn time(text: &str) -> Option<SystemTime> {
    let seconds = u64::try_from(seconds_since_1970(text)?).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

async fn configuration(access: &Access) -> Result<Config, KubeError> {
    match access {
        Access::InCluster => Config::incluster().map_err(|error| KubeError::InCluster(chain(&error))),
        Access::Kubeconfig { file, context } => {
            let failed = |reason: String| KubeError::Kubeconfig {
                path: file.clone(),
                reason,
            };
            let kubeconfig = Kubeconfig::read_from(file).map_err(|error| failed(chain(&error)))?;
            let options = KubeConfigOptions {
                context: context.clone(),
                ..KubeConfigOptions::default()
            };
            Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(|error| match context {
                    Some(context) => failed(format!("context {context:?}: {}", chain(&error))),
                    None => failed(chain(&error)),
                })
        }
    }
}

/// Makes a client. Behind a proxy it is kube's own: its connections to proxies cannot be had apart.
fn client(config: Config) -> Result<Client, kube::Error> {
    if config.proxy_url.is_some() {
        let builder = ClientBuilder::try_from(config)?;
        return Ok(builder.with_layer(&MapResultLayer::new(busy)).build());
    }
    let mut connector = HttpConnector::new();
    // TLS is put around it.
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_result(busy)
        .service(Builder::new(TokioExecutor::new()).build::<_, Body>(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// The API server says when to come again.
#[derive(Debug, thiserror::Error)]
#[error("the API server is busy ({status}) and asks to retry after {} s", after.as_secs())]
pub(super) struct Busy {
    pub(super) status: u16,
    pub(super) after: Duration,
}

/// Turns an answer that says when to come again into an error that says so: kube keeps no header of an error.
fn busy<B, E: Into<BoxError>>(answer: Result<Response<B>, E>) -> Result<Response<B>, BoxError> {
    let answer = answer.map_err(Into::into)?;
    let status = answer.status();
    let after = (status.is_client_error() || status.is_server_error())
        .then(|| {
            answer
                .headers()
                .get(RETRY_AFTER)?
                .to_str()
                .ok()?
                .trim()
                .parse()
                .ok()
        })
        .flatten();
    match after {
        Some(seconds) => Err(Box::new(Busy {
            status: status.as_u16(),
            after: Duration::from_secs(seconds),
        })),
        None => Ok(answer),
    }
}
