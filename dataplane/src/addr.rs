//! One address type for both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv4 or IPv6 address as 16 bytes in network byte order; IPv4 is held as `::ffff:a.b.c.d`.
///
/// The parser drops IPv6 packets whose source or destination is itself IPv4-mapped, so the two families never meet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Addr([u8; 16]);

const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

impl Addr {
    /// An IPv4 address from its four bytes in network order.
    #[inline]
    pub fn v4(octets: [u8; 4]) -> Self {
        // As one number: put together in memory from parts, it could not be read as a whole before it reached the cache.
        Self((0xffff_0000_0000 | u128::from(u32::from_be_bytes(octets))).to_be_bytes())
    }

    /// An IPv6 address from its sixteen bytes in network order; must not be IPv4-mapped on the packet path.
    #[inline]
    pub const fn v6(octets: [u8; 16]) -> Self {
        Self(octets)
    }

    /// Whether this is an IPv4 address.
    #[inline]
    pub fn is_v4(self) -> bool {
        self.0[..12] == V4_PREFIX
    }

    /// The sixteen bytes in network order.
    #[inline]
    pub fn octets(self) -> [u8; 16] {
        self.0
    }

    /// An IPv4 address as a number, first byte most significant.
    #[inline]
    pub fn to_v4(self) -> Option<u32> {
        let [.., a, b, c, d] = self.0;
        self.is_v4().then_some(u32::from_be_bytes([a, b, c, d]))
    }

    /// The address as a number, most significant byte first.
    #[inline]
    pub fn to_u128(self) -> u128 {
        u128::from_be_bytes(self.0)
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            let [.., a, b, c, d] = addr.0;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(addr.0))
        }
    }
}

impl std::fmt::Display for Addr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl std::fmt::Debug for Addr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}
