//! What the literal evaluator says about an attempt.

use std::{net::IpAddr, path::Path};

use anyhow::Context;
use ringwall_evaluate::Verdict;
use ringwall_policy::{Cluster, Settings};
use ringwall_source::folder;
use ringwall_testbed::probe::Service;

use super::recipe::Recipe;

/// Reads a recipe's cluster as the firewall will.
pub(super) fn cluster(recipe: &Recipe, scratch: &Path) -> anyhow::Result<Cluster> {
    let folder = recipe.export(scratch)?;
    let settings = Settings {
        pod_cidrs: vec![
            ringwall_testbed::topology::POD_CIDR
                .parse()
                .context("pod network")?,
            ringwall_testbed::topology::POD_CIDR_V6
                .parse()
                .context("pod network")?,
        ],
        ..Settings::default()
    };
    Ok(folder::load(&folder, &settings)?.cluster)
}

/// The reference's verdict.
pub(super) fn verdict(cluster: &Cluster, from: IpAddr, to: IpAddr, service: Service) -> Verdict {
    let (protocol, port) = match service {
        Service::Tcp(port) => (6, Some(port)),
        Service::Udp(port) => (17, Some(port)),
        Service::Echo if to.is_ipv4() => (1, None),
        Service::Echo => (58, None),
    };
    ringwall_evaluate::judge(
        cluster,
        &ringwall_evaluate::identify(cluster, from),
        &ringwall_evaluate::identify(cluster, to),
        ringwall_evaluate::Service {
            protocol,
            port,
            source_port: None,
        },
    )
}
