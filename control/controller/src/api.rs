//! What the control process answers over HTTP: status on its Unix socket, metrics and health on the network.
//!
//! The network listeners serve nothing that names an object: metrics carry counts, health says ready or in general words
//! why not. Status, and health in detail, are for root, on the Unix socket.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::Listener,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use ringwall_analyse::{
    coverage::FirewallPosition,
    explain::{ExplainError, Question},
    flow::{AskedPort, EndName},
};
use ringwall_messages::cni::{POD_ENDS, POD_STARTS, PodEnds, PodStart};
use ringwall_process::essential::Essential;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use crate::{
    AskError, Overview,
    frontends::{AskedFrontend, MAX_FRONTENDS, name_of},
    metrics,
    staged::{MAX_FLOWS, StagedRequest},
};

/// How patient a server is.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    /// Until the head of a request is there; also the longest pause between two requests.
    head: Duration,
    /// For everything on one connection.
    connection: Duration,
    /// Connections at once; more wait.
    connections: usize,
}

const TIMEOUTS: Timeouts = Timeouts {
    head: Duration::from_secs(10),
    connection: Duration::from_secs(300),
    connections: 64,
};

/// Room for [`MAX_FLOWS`] flows with the longest addresses.
const MAX_STAGED_BYTES: usize = 256 * MAX_FLOWS;

/// Why the control process cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A network address cannot be listened on.
    #[error("cannot listen on {address} ({key}): {error}; {}", what_to_do(error))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Where the configuration has it.
        key: &'static str,
        /// What the kernel says.
        error: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot make the control socket {}: {error}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        error: io::Error,
    },
}

/// Running servers. They end when this is dropped, and the socket goes.
#[derive(Debug)]
pub struct Servers {
    tasks: Vec<JoinHandle<()>>,
    socket: PathBuf,
    /// Where metrics are served; differs from the configured address where that has port 0.
    pub metrics: SocketAddr,
    /// Where health is served.
    pub health: SocketAddr,
}

impl Servers {
    /// Listens everywhere, or nowhere. `health` is where health alone is served; with the metrics where None.
    ///
    /// # Errors
    /// An address or the socket cannot be used.
    pub async fn start(
        overview: Arc<Overview>,
        socket: &Path,
        metrics: SocketAddr,
        health: Option<SocketAddr>,
        essential: &Essential,
    ) -> Result<Self, ApiError> {
        let on_metrics = listen(metrics, "telemetry.metricsListen").await?;
        let on_health = match health {
            Some(address) if address != metrics => Some(listen(address, "telemetry.healthListen").await?),
            _ => None,
        };
        let metrics = local(&on_metrics, metrics);
        let health = on_health
            .as_ref()
            .map_or(metrics, |listener| local(listener, metrics));
        let on_socket = bind_private(socket).map_err(|error| ApiError::Socket {
            path: socket.to_owned(),
            error,
        })?;

        let with_metrics = Router::new().route("/metrics", get(scrape));
        let with_health = Router::new()
            .route("/livez", get(live))
            .route("/readyz", get(ready));
        let with_status = Router::new()
            .route("/livez", get(live))
            .route("/readyz", get(ready_in_detail))
            .route("/v1/status", get(status))
            .route("/v1/accept", post(accept))
            .route("/v1/explain", post(explain))
            .route("/v1/coverage", post(coverage))
            .route(POD_STARTS, get(pod_starts).post(start_pod))
            .route(POD_ENDS, post(end_pods))
            .route("/v1/frontends", post(frontends))
            .route(
                "/v1/staged",
                post(staged).layer(DefaultBodyLimit::max(MAX_STAGED_BYTES)),
            );
        let on_network = if on_health.is_some() {
            with_metrics.clone()
        } else {
            with_metrics.clone().merge(with_health.clone())
        };
        let mut tasks = vec![
            essential.task(
                "the server of metrics",
                serve(on_metrics, TIMEOUTS, on_network.with_state(Arc::clone(&overview))),
            ),
            essential.task(
                "the server of the control socket",
                serve(
                    on_socket,
                    TIMEOUTS,
                    with_status.merge(with_metrics).with_state(Arc::clone(&overview)),
                ),
            ),
        ];
        if let Some(listener) = on_health {
            tasks.push(essential.task(
                "the server of health",
                serve(listener, TIMEOUTS, with_health.with_state(overview)),
            ));
        }
        Ok(Self {
            tasks,
            socket: socket.to_owned(),
            metrics,
            health,
        })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        // Gone already: as well.
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn what_to_do(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        "a port below 1024 takes CAP_NET_BIND_SERVICE, which control has if ringwall is started with it: add it to CapabilityBoundingSet \
         of the service, or choose a port from 1024"
    } else {
        "choose another address or stop what uses it"
    }
}

async fn listen(address: SocketAddr, key: &'static str) -> Result<TcpListener, ApiError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| ApiError::Listen { address, key, error })
}

fn local(listener: &TcpListener, configured: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(configured)
}

/// Binds under another name first, so that no client can connect before the mode is 0600. A socket that is left over is
/// replaced; the lock of `ringwall run` keeps a second instance away.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(".new");
    let hidden = PathBuf::from(hidden);
    match std::fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

/// Serves for ever. axum's own server would wait for a request without end.
async fn serve(mut listener: impl Listener, patience: Timeouts, router: Router) {
    let places = Arc::new(Semaphore::new(patience.connections));
    // They end with this.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return; // never closed
        };
        let (stream, _) = listener.accept().await;
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience.head)
            .serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            // One that fails is the client's loss.
            let _ = timeout(patience.connection, connection).await;
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn scrape(State(overview): State<Arc<Overview>>) -> Response {
    match metrics::render(overview.status().await, overview.latencies()) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn live(State(overview): State<Arc<Overview>>) -> Response {
    match overview.stuck() {
        None => "ok\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

/// For strangers.
async fn ready(State(overview): State<Arc<Overview>>) -> Response {
    let reasons = overview.not_ready().into_iter();
    readiness(reasons.map(|reason| match reason.detail {
        Some(_) => reason.brief + "; see `ringwall status`",
        None => reason.brief,
    }))
}

/// For root.
async fn ready_in_detail(State(overview): State<Arc<Overview>>) -> Response {
    readiness(overview.not_ready().iter().map(ToString::to_string))
}

fn readiness(reasons: impl Iterator<Item = String>) -> Response {
    let reasons: Vec<String> = reasons.collect();
    if reasons.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
    }
}

async fn status(State(overview): State<Arc<Overview>>) -> Response {
    Json(overview.status().await).into_response()
}

async fn accept(State(overview): State<Arc<Overview>>) -> Response {
    match overview.accept() {
        Ok(()) => (
            StatusCode::ACCEPTED,
            "the folder's content will be taken as it is\n",
        )
            .into_response(),
        Err(reason) => (StatusCode::CONFLICT, format!("{reason}\n")).into_response(),
    }
}

/// Of the CNI plugin: a pod is about to start.
async fn start_pod(State(overview): State<Arc<Overview>>, Json(start): Json<PodStart>) -> Response {
    match overview.start_pod(start) {
        Ok(answer) => Json(answer).into_response(),
        Err(reason) => (StatusCode::BAD_REQUEST, format!("{reason}\n")).into_response(),
    }
}

/// Of a process that is to take over: the pods that the CNI plugin started.
async fn pod_starts(State(overview): State<Arc<Overview>>) -> Response {
    Json(overview.pod_starts().known()).into_response()
}

/// Of the CNI plugin: containers have ended.
async fn end_pods(State(overview): State<Arc<Overview>>, Json(ends): Json<PodEnds>) -> StatusCode {
    overview.pod_starts().end(&ends);
    StatusCode::NO_CONTENT
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use std::time::Instant;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    async fn ask(stream: &mut TcpStream) -> String {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut text = [0; 1024];
        let length = stream.read(&mut text).await.unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    /// Reads until the server closes, which it must in time.
    async fn closed(mut stream: TcpStream) -> Duration {
        let began = Instant::now();
        let mut rest = Vec::new();
        let end = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "still open");
        began.elapsed()
    }

    #[tokio::test]
    async fn who_does_not_ask_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let patience = Timeouts {
            head: Duration::from_millis(300),
            connection: Duration::from_secs(60),
            connections: 2,
        };
        let router = Router::new().route("/", get(|| async { "fine" }));
        let server = tokio::spawn(serve(listener, patience, router));

        // Both places are taken by clients that say nothing, or half of something.
        let silent = TcpStream::connect(address).await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
        let mut third = TcpStream::connect(address).await.unwrap();
        let began = Instant::now();
        assert!(ask(&mut third).await.ends_with("fine"));
        assert!(began.elapsed() > Duration::from_millis(200), "a third place");
        closed(silent).await;
        closed(slow).await;
        // One that asked is not held for ever, either.
        let pause = closed(third).await;
        assert!(
            pause > Duration::from_millis(200),
            "{pause:?}: no time for a second request"
        );
        server.abort();
    }
}

/// What `POST /v1/explain` takes.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// An address or `namespace/pod`.
    pub from: String,
    /// An address, `namespace/pod` or `svc:namespace/name`.
    pub to: String,
    /// `80/TCP`, `ICMP` or `ip/47`; of a Service, also `http/TCP`.
    pub service: String,
    /// Whether it is about a packet that was seen, as it was: an address is then no Service's.
    #[serde(default)]
    pub of_flow: bool,
}

async fn coverage(State(overview): State<Arc<Overview>>, Json(place): Json<FirewallPosition>) -> Response {
    let answer = tokio::task::spawn_blocking(move || overview.coverage(&place)).await;
    match answer {
        Ok(Ok(coverage)) => Json(coverage).into_response(),
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn explain(State(overview): State<Arc<Overview>>, Json(request): Json<ExplainRequest>) -> Response {
    let ExplainRequest {
        from,
        to,
        service,
        of_flow,
    } = request;
    let read = || -> Result<_, String> {
        let AskedPort { service, name } = AskedPort::read(&service)?;
        let (src, dst) = (EndName::read(&from)?, EndName::read(&to)?);
        Ok((Question { src, dst, service }, name))
    };
    let (question, port_name) = match read() {
        Ok(read) => read,
        Err(wrong) => return (StatusCode::BAD_REQUEST, wrong).into_response(),
    };
    let of_service = match &question.dst {
        EndName::Service(_) => true,
        EndName::Address(address) => overview.is_of_services(*address),
        EndName::Pod(_) => false,
    };
    let services = match of_service && !of_flow {
        false => Some(Arc::default()),
        true => overview.services().await,
    };
    let Some(services) = services else {
        let wrong = "the Services of the API server are not known yet; ask again, and see `ringwall status`";
        return (StatusCode::SERVICE_UNAVAILABLE, wrong).into_response();
    };
    let answer =
        tokio::task::spawn_blocking(move || overview.explain(&question, port_name.as_deref(), &services))
            .await;
    match answer {
        Ok(Ok(explanation)) => Json(explanation).into_response(),
        Ok(Err(error)) => {
            let status = match &error {
                AskError::NoPolicyYet => StatusCode::SERVICE_UNAVAILABLE,
                AskError::Explain(ExplainError::End(_)) => StatusCode::NOT_FOUND,
                AskError::Explain(ExplainError::Lacks(_)) => StatusCode::BAD_REQUEST,
                AskError::Explain(ExplainError::Contradiction { .. } | ExplainError::Changes(_))
                | AskError::Staged(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            (status, error.to_string()).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn frontends(State(overview): State<Arc<Overview>>, Json(asked): Json<Vec<AskedFrontend>>) -> Response {
    if asked.len() > MAX_FRONTENDS {
        let wrong = format!("{} frontends; ask about {MAX_FRONTENDS} at most", asked.len());
        return (StatusCode::PAYLOAD_TOO_LARGE, wrong).into_response();
    }
    let Some(services) = overview.services().await else {
        let wrong = "the Services of the API server are not known yet";
        return (StatusCode::SERVICE_UNAVAILABLE, wrong).into_response();
    };
    let names: Vec<Option<String>> = asked.iter().map(|asked| name_of(&services, asked)).collect();
    Json(names).into_response()
}

async fn staged(State(overview): State<Arc<Overview>>, Json(request): Json<StagedRequest>) -> Response {
    if request.flows.len() > MAX_FLOWS {
        let wrong = format!("{} flows; ask about {MAX_FLOWS} at most", request.flows.len());
        return (StatusCode::PAYLOAD_TOO_LARGE, wrong).into_response();
    }
    let answer = tokio::task::spawn_blocking(move || overview.staged(&request.flows)).await;
    match answer {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(error @ AskError::NoPolicyYet)) => {
            (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response()
        }
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
