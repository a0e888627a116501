//! The cluster of a size: as the generator has it, and as the compiler takes it.

use anyhow::anyhow;
use ringwall_policy::Cluster;
use ringwall_source::decode::decode;
use ringwall_testbed::synthetic::{Churn, SERVICE_CIDR, Spec, Synthetic};

use super::Size;

/// The synthetic cluster of a size; only its pods change, and its nodes where they are to.
pub(super) fn synthetic(size: Size, nodes: bool) -> anyhow::Result<Synthetic> {
    let (policies, pods, namespaces) = size.counts();
    let mut spec = Spec::sized(policies, pods, namespaces);
    spec.churn = Churn::of_pods();
    if nodes {
        spec.churn.node = Churn::default().node;
    }
    spec.full = true;
    Ok(Synthetic::new(spec)?)
}

/// Decodes it.
pub(super) fn decoded(synthetic: &Synthetic) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::default();
    for object in synthetic.objects() {
        let decoded = decode(&object).map_err(|error| anyhow!("{error}: {object}"))?;
        decoded.into_iter().for_each(|it| cluster.insert(it.object));
    }
    cluster.settings.service_cidrs = vec![SERVICE_CIDR.parse()?];
    Ok(cluster)
}
