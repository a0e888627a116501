//! Seeded hashing of flow keys: fast, and unpredictable to who does not know the seed.

use crate::{addr::Addr, time::Nanos, wire::FlowKey};

use super::SHARDS;

/// Secret numbers, expanded from one random seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seed([u64; 4]);

/// Hashes of one key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyHash {
    /// Equal for both directions; chooses the shard, and names fragmented datagrams.
    pub pair: u64,
    /// Of this direction.
    pub directed: u64,
}

impl KeyHash {
    /// The shard of the key.
    #[inline]
    pub(crate) fn shard(self) -> u8 {
        const { assert!(SHARDS == 256) }
        (self.pair >> 56) as u8
    }
}

/// Both halves of a 128-bit product, folded.
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl Seed {
    pub(crate) fn new(seed: u64) -> Self {
        // splitmix64: any seed, zero included, gives four unrelated odd numbers.
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ z >> 31) | 1
        }))
    }

    #[inline]
    fn addr(&self, addr: Addr) -> u64 {
        let value = addr.to_u128();
        mix((value >> 64) as u64 ^ self.0[0], value as u64 ^ self.0[1])
    }

    #[inline]
    pub(crate) fn key(&self, key: &FlowKey) -> KeyHash {
        let (src, dst) = (self.addr(key.src), self.addr(key.dst));
        let space = u64::from(key.zone) << 32 | u64::from(key.vlan);
        let ports = u64::from(key.src_port) << 32 | u64::from(key.dst_port) << 16 | u64::from(key.protocol);
        KeyHash {
            pair: mix(src.wrapping_add(dst) ^ self.0[2], space ^ self.0[3]),
            directed: mix(
                mix(src ^ self.0[2], dst.rotate_left(23) ^ self.0[3]) ^ space,
                ports ^ self.0[0],
            ),
        }
    }

    /// The account of an endpoint.
    pub(crate) fn account(&self, addr: Addr) -> u32 {
        (self.addr(addr) >> 32) as u32
    }

    /// The account of an end that is outside of the cluster: one person may have all of an IPv6 network of 64 bits.
    pub(crate) fn outside_account(&self, addr: Addr) -> u32 {
        let octets = addr.octets();
        let mut network = [0; 16];
        network[..8].copy_from_slice(&octets[..8]);
        let whole = if addr.is_v4() { octets } else { network };
        self.account(Addr::v6(whole))
    }

    /// Names the flow of a key that began at a time.
    pub(crate) fn flow_id(&self, key: &FlowKey, born: u32) -> u64 {
        mix(self.key(key).directed ^ self.0[2], u64::from(born) ^ self.0[0])
    }

    /// Names a dropped packet: the `nth` of its worker's turn. Does not depend on which worker that is, so that a replay
    /// gives the same names for any number of them.
    pub(crate) fn drop_id(&self, key: Option<&FlowKey>, at: Nanos, nth: usize) -> u64 {
        let key = key.map_or(0, |key| self.key(key).directed);
        mix(key ^ self.0[3] ^ nth as u64, at.0 ^ self.0[1])
    }

    /// Of a fragmented datagram; `pair` and the direction are in the key.
    #[inline]
    pub(crate) fn datagram(&self, key: &FlowKey, id: u32) -> u64 {
        mix(self.key(key).directed ^ self.0[1], u64::from(id) ^ self.0[2])
    }
}
