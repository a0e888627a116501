//! The HTTP client of the watches.
//!
//! kube makes the same one, without keepalive: a watch whose server has vanished without a word (power, a cut cable, a
//! firewall that forgot the connection) would be noticed only when the watch should have ended.

use std::time::Duration;

use hyper_util::{
    client::legacy::{Builder, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Error,
    client::{Body, ConfigExt},
    config::Config,
};
use tower::{BoxError, ServiceBuilder};

/// After so long without a word from the server's kernel it is asked for one.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// And again as often.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// After so many questions without answer the connection is dead: 25 seconds in all.
const KEEPALIVE_RETRIES: u32 = 3;

/// As long may what we sent stay without acknowledgement.
const UNACKNOWLEDGED: Duration = Duration::from_secs(25);

/// Makes a client. Behind a proxy it is kube's own: its connections to proxies cannot be had apart.
///
/// # Errors
/// The credentials or certificates cannot be used.
pub(super) fn client(config: Config) -> Result<Client, Error> {
    if config.proxy_url.is_some() {
        return Client::try_from(config);
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
        .map_err(BoxError::from)
        .service(Builder::new(TokioExecutor::new()).build::<_, Body>(connector));
    Ok(Client::new(service, config.default_namespace))
}
