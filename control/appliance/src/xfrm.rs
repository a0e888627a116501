//! The kernel's IPsec policies, as far as to know whether there are any.

use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_XFRM};

use super::netlink::{NetlinkError, readable};

const GET_POLICY: u16 = 0x15;
const NEW_POLICY: u16 = 0x13;
const ERROR: u16 = 2;
const REQUEST_DUMP: u16 = 0x301;
/// Bytes of a netlink header, and of `struct xfrm_userpolicy_id`.
const HEADER: usize = 16;
const POLICY_ID: usize = 64;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether packets of this network namespace may be transformed by IPsec. A kernel without it has none.
///
/// # Errors
/// The kernel does not say.
pub(crate) fn has_policies() -> Result<bool, NetlinkError> {
    let what = "look for IPsec policies";
    let mut socket = match Socket::new(NETLINK_XFRM) {
        Ok(socket) => socket,
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PROTONOSUPPORT.raw_os_error()) => {
            return Ok(false);
        }
        Err(error) => return Err(NetlinkError::Socket(error)),
    };
    socket.bind_auto().map_err(NetlinkError::Socket)?;
    socket
        .connect(&SocketAddr::new(0, 0))
        .map_err(NetlinkError::Socket)?;
    let refused = |source| NetlinkError::Refused {
        what: what.to_owned(),
        source,
    };
    let mut request = vec![0; HEADER + POLICY_ID];
    let length = request.len() as u32;
    request[..4].copy_from_slice(&length.to_ne_bytes());
    request[4..6].copy_from_slice(&GET_POLICY.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    request[8..12].copy_from_slice(&1_u32.to_ne_bytes());
    socket.send(&request, 0).map_err(refused)?;
    if !readable(&socket, ANSWER_TIMEOUT).map_err(NetlinkError::Socket)? {
        return Err(NetlinkError::Answer {
            what: what.to_owned(),
            reason: "the kernel did not answer".to_owned(),
        });
    }
    // The first message tells: a policy, or the end of the list.
    let (bytes, _) = socket.recv_from_full().map_err(refused)?;
    let kind = bytes.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    let code = bytes
        .get(HEADER..HEADER + 4)
        .and_then(|code| code.first_chunk().copied());
    match (kind, code.map(i32::from_ne_bytes)) {
        (Some(NEW_POLICY), _) => Ok(true),
        (Some(ERROR), Some(code)) if code != 0 => Err(refused(std::io::Error::from_raw_os_error(-code))),
        _ => Ok(false),
    }
}
