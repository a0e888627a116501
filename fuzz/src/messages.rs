//! Input: a flag, and a datagram on the dataplane's socket. Flags: 1: the datagram comes with memory, which holds what
//! comes behind the first line of the input. 2: that memory is not sealed. 4: the end that reads is control's.
//!
//! What must hold: what cannot be read ends in an error. What can be read is sent as it was understood, and is understood
//! again as the same.

use std::{
    io::Write,
    os::fd::{AsFd, OwnedFd},
};

use ringwall_messages::{
    Connection, ContentHash, ProtocolError, Received, Reply, Request, image_memfd, read_image,
};
use rustix::{
    fs::MemfdFlags,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
};

/// Longer datagrams are refused.
const INLINE: usize = 32 * 1024;

/// Checks one input.
pub fn run(data: &[u8]) {
    let Some((flags, rest)) = data.split_first() else {
        return;
    };
    let (text, memory) = match rest.iter().position(|byte| *byte == b'\n') {
        Some(at) if flags & 1 != 0 => (&rest[..at], Some(&rest[at + 1..])),
        _ => (rest, None),
    };
    if text.is_empty() || text.len() > INLINE {
        return;
    }
    let memory = memory.map(|bytes| memfd(bytes, flags & 2 == 0));
    if flags & 4 == 0 {
        let received = arrive::<Request>(text, memory.as_ref());
        if let Ok(Received { message, fd }) = received {
            if let (Request::Publish { bytes, .. }, Some(fd)) = (&message, fd)
                && let Ok(image) = read_image(fd, *bytes)
            {
                assert_eq!(image.len() as u64, *bytes);
            }
            same(&message);
        }
    } else if let Ok(Received { message, .. }) = arrive::<Reply>(text, memory.as_ref()) {
        same(&message);
    }
    if let Ok(text) = std::str::from_utf8(text)
        && let Ok(hash) = text.parse::<ContentHash>()
    {
        assert_eq!(hash.to_string(), text.to_ascii_lowercase());
    }
}

fn memfd(bytes: &[u8], sealed: bool) -> OwnedFd {
    if sealed {
        return image_memfd("fuzz", bytes).expect("memory");
    }
    let fd = rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memory");
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes).expect("memory");
    file.into()
}

/// What the other end of a connection makes of a datagram.
fn arrive<T: serde::de::DeserializeOwned>(
    text: &[u8],
    memory: Option<&OwnedFd>,
) -> Result<Received<T>, ProtocolError> {
    let (there, here) = Connection::pair()?;
    let fds: Vec<_> = memory.into_iter().map(AsFd::as_fd).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let text = [std::io::IoSlice::new(text)];
    rustix::net::sendmsg(&there, &text, &mut control, SendFlags::NOSIGNAL).expect("room for a datagram");
    here.receive()
}

/// A message arrives as it was sent.
fn same<T>(message: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let (there, here) = Connection::pair().expect("two sockets");
    there
        .send(message, None)
        .expect("what was understood can be said");
    let again: Received<T> = here.receive().expect("what was said can be understood");
    // A number that is none is not equal to itself; JSON has no such.
    assert_eq!(&again.message, message);
}
