//! Names of the Services that clients use, for whoever shows flows: no verdict depends on them.

use std::net::IpAddr;

use ringwall_policy::{
    Protocol,
    services::{Service, ServicePort, Services},
};
use serde::{Deserialize, Serialize};

/// Most frontends of one question.
pub const MAX_FRONTENDS: usize = 10_000;

/// Where a client sent a packet that was translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AskedFrontend {
    /// A Service's address, or a node's.
    pub address: IpAddr,
    /// None for a protocol without ports.
    pub port: Option<u16>,
    /// IP protocol.
    pub protocol: u8,
}

/// The Service behind a frontend, `namespace/name`: by its own address, else by its port at every node.
pub(crate) fn name_of(services: &Services, asked: &AskedFrontend) -> Option<String> {
    let all = || services.services.values();
    let by_address = all().find(|service| has_address(service, asked.address));
    let found = by_address.or_else(|| {
        all().find(|service| {
            ports_of(service, asked.protocol)
                .any(|port| port.node_port.is_some() && port.node_port == asked.port)
        })
    })?;
    Some(format!("{}/{}", found.key.namespace, found.key.name))
}

fn has_address(service: &Service, address: IpAddr) -> bool {
    let balanced = service.ingress.iter().map(|ingress| ingress.address);
    service
        .cluster_ips
        .iter()
        .chain(&service.external_ips)
        .copied()
        .chain(balanced)
        .any(|own| own == address)
}

fn ports_of(service: &Service, protocol: u8) -> impl Iterator<Item = &ServicePort> {
    service.ports.iter().filter(move |port| {
        let number = match port.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        };
        number == protocol
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ringwall_policy::{
        ObjectKey,
        services::{ServiceKind, ServiceObject, TargetPort},
    };

    use super::*;

    fn service(name: &str, address: [u8; 4], node_port: Option<u16>) -> ServiceObject {
        ServiceObject::Service(Arc::new(Service {
            key: ObjectKey {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
            },
            kind: ServiceKind::NodePort,
            selector: Default::default(),
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                target: TargetPort::Number(8080),
                node_port,
            }],
            cluster_ips: vec![address.into()],
            external_ips: vec![[198, 51, 100, address[3]].into()],
            ingress: Vec::new(),
            families: Vec::new(),
            publish_not_ready: false,
            external_local: false,
            internal_local: false,
            source_ranges: Vec::new(),
            proxy_name: None,
        }))
    }

    #[test]
    fn a_frontend_has_the_name_of_the_service_that_it_is_of() {
        let mut services = Services::default();
        services.insert(&service("web", [10, 96, 0, 10], Some(30080)));
        services.insert(&service("db", [10, 96, 0, 11], None));
        let name = |address: [u8; 4], port: Option<u16>, protocol| {
            let address = address.into();
            name_of(
                &services,
                &AskedFrontend {
                    address,
                    port,
                    protocol,
                },
            )
        };
        assert_eq!(name([10, 96, 0, 10], Some(80), 6).as_deref(), Some("shop/web"));
        assert_eq!(name([198, 51, 100, 11], Some(80), 6).as_deref(), Some("shop/db"));
        assert_eq!(name([192, 0, 2, 1], Some(30080), 6).as_deref(), Some("shop/web"));
        for (address, port, protocol) in [
            ([192, 0, 2, 1], Some(30080), 17),
            ([192, 0, 2, 1], Some(80), 6),
            ([192, 0, 2, 1], None, 47),
        ] {
            assert_eq!(name(address, port, protocol), None);
        }
    }
}
