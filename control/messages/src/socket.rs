//! One end of the socket: JSON datagrams, and memory that travels as a file descriptor.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
        sockopt,
    },
};
use serde::{Serialize, de::DeserializeOwned};

use super::MAX_IMAGE;

/// Messages longer than this travel in a memfd instead of the datagram, whose size the kernel limits.
const MAX_INLINE: usize = 32 * 1024;

/// Longest message, wherever it travels.
const MAX_MESSAGE: u64 = 64 * 1024 * 1024;

/// The datagram that stands for a long message; the memfd that comes with it holds the text.
#[derive(Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Spilled {
    /// Length of the text in bytes.
    spilled: u64,
}

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The socket is not there, or not reachable.
    #[error("cannot connect to {}: {error}; is `ringwall run` running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        error: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}: {error}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        error: io::Error,
    },
    /// The connection broke.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The other end closed it.
    #[error("the other end closed the connection")]
    Closed,
    /// Nothing came in time.
    #[error("no answer in time")]
    TimedOut,
    /// What came is no message.
    #[error("not a message of this protocol: {0}")]
    Malformed(String),
    /// A message that may not come here.
    #[error("unexpected answer: {0}")]
    Unexpected(String),
}

impl From<rustix::io::Errno> for ProtocolError {
    fn from(errno: rustix::io::Errno) -> Self {
        match errno {
            rustix::io::Errno::AGAIN => Self::TimedOut,
            rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => Self::Closed,
            other => Self::Io(other.into()),
        }
    }
}

/// A message and the file descriptor that came with it.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// The descriptor, where one came.
    pub fd: Option<OwnedFd>,
}

/// A connected end. Blocking; `&self` suffices, and one thread may send while another receives.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Self, ProtocolError> {
        let open = || -> rustix::io::Result<OwnedFd> {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(socket)
        };
        open()
            .map(|socket| Self { socket })
            .map_err(|errno| ProtocolError::Connect {
                path: path.to_owned(),
                error: errno.into(),
            })
    }

    /// Two ends that are connected to each other.
    pub fn pair() -> Result<(Self, Self), ProtocolError> {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    /// How long [`Self::receive`] waits before it fails with [`ProtocolError::TimedOut`]; None for ever.
    pub fn set_receive_timeout(&self, timeout: Option<Duration>) -> Result<(), ProtocolError> {
        Ok(sockopt::set_socket_timeout(
            &self.socket,
            sockopt::Timeout::Recv,
            timeout,
        )?)
    }

    /// How long [`Self::send`] waits for room before it fails with [`ProtocolError::TimedOut`]; None for ever.
    pub fn set_send_timeout(&self, timeout: Option<Duration>) -> Result<(), ProtocolError> {
        Ok(sockopt::set_socket_timeout(
            &self.socket,
            sockopt::Timeout::Send,
            timeout,
        )?)
    }

    /// From now on [`Self::receive`] and [`Self::send`] never wait: they fail with [`ProtocolError::TimedOut`].
    pub fn set_nonblocking(&self) -> Result<(), ProtocolError> {
        Ok(rustix::io::ioctl_fionbio(&self.socket, true)?)
    }

    /// Ends both directions; a thread that waits in [`Self::receive`] gets [`ProtocolError::Closed`].
    pub fn shutdown(&self) {
        // Fails only where the other end is gone already.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    /// Sends a message. `fd` is duplicated into the other process; the caller keeps its own.
    ///
    /// A message that is too long for a datagram takes the place of the descriptor, so those with `fd` must be short.
    pub fn send<T: Serialize>(&self, message: &T, fd: Option<BorrowedFd<'_>>) -> Result<(), ProtocolError> {
        let text =
            serde_json::to_vec(message).map_err(|error| ProtocolError::Malformed(error.to_string()))?;
        if text.len() <= MAX_INLINE {
            return self.send_datagram(&text, fd);
        }
        if fd.is_some() {
            return Err(ProtocolError::Malformed(format!(
                "{} bytes beside a descriptor",
                text.len()
            )));
        }
        let spilled = Spilled {
            spilled: text.len() as u64,
        };
        let envelope =
            serde_json::to_vec(&spilled).map_err(|error| ProtocolError::Malformed(error.to_string()))?;
        let memfd = image_memfd("ringwall-message", &text)?;
        self.send_datagram(&envelope, Some(memfd.as_fd()))
    }

    fn send_datagram(&self, text: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), ProtocolError> {
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(ProtocolError::Malformed("no room for a descriptor".to_owned()));
        }
        // The peer may be gone: an error, not a SIGPIPE.
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(
                &self.socket,
                &[IoSlice::new(text)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
        })?;
        Ok(())
    }

    /// Waits for the next message.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Received<T>, ProtocolError> {
        let mut text = vec![0; MAX_INLINE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut text)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if received.bytes == 0 {
            return Err(ProtocolError::Closed);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(ProtocolError::Malformed(format!(
                "a datagram of more than {MAX_INLINE} bytes"
            )));
        }
        text.truncate(received.bytes);

        if let Ok(Spilled { spilled }) = serde_json::from_slice(&text) {
            let Some(fd) = fd else {
                return Err(ProtocolError::Malformed(
                    "a long message without its memory".to_owned(),
                ));
            };
            let text = read_sealed(fd, spilled, MAX_MESSAGE)?;
            return parse(&text).map(|message| Received { message, fd: None });
        }
        parse(&text).map(|message| Received { message, fd })
    }
}

impl From<OwnedFd> for Connection {
    /// One end of a pair that was made elsewhere.
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> Self {
        connection.socket
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(text).map_err(|error| ProtocolError::Malformed(error.to_string()))
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The listening end. The socket file goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, mode 0600. A socket file without a listener is replaced; one that somebody
    /// listens on is an error.
    pub fn bind(path: &Path) -> Result<Self, ProtocolError> {
        let failed = |error: io::Error| ProtocolError::Listen {
            path: path.to_owned(),
            error,
        };
        if Connection::connect(path).is_ok() {
            return Err(failed(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process serves it; stop that one, or give this one another runtimeDir",
            )));
        }
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let open = || -> io::Result<OwnedFd> {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            // No client can connect before listen, so the mode is in force in time. The folder's group is that of control.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
            rustix::net::listen(&socket, 16)?;
            Ok(socket)
        };
        open()
            .map(|socket| Self {
                socket,
                path: path.to_owned(),
            })
            .map_err(failed)
    }

    /// Waits for a client.
    pub fn accept(&self) -> Result<Connection, ProtocolError> {
        let socket =
            rustix::io::retry_on_intr(|| rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC))?;
        Ok(Connection { socket })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Gone already: as well.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Memory with the bytes of an image in it, sealed: it cannot be changed or resized any more.
pub fn image_memfd(name: &str, bytes: &[u8]) -> Result<OwnedFd, ProtocolError> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    let fd = OwnedFd::from(file);
    rustix::fs::fcntl_add_seals(
        &fd,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(fd)
}

/// Copies a published image of `bytes` bytes into private memory.
///
/// Refuses a descriptor whose size is another, that is larger than [`MAX_IMAGE`], or that is not sealed against
/// changes.
pub fn read_image(fd: OwnedFd, bytes: u64) -> Result<Vec<u8>, ProtocolError> {
    read_sealed(fd, bytes, MAX_IMAGE)
}

fn read_sealed(fd: OwnedFd, bytes: u64, limit: u64) -> Result<Vec<u8>, ProtocolError> {
    let seals = rustix::fs::fcntl_get_seals(&fd)?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW) {
        return Err(ProtocolError::Malformed(
            "memory that is not sealed against changes".to_owned(),
        ));
    }
    let mut file = File::from(fd);
    let size = file.metadata()?.len();
    if size != bytes || size > limit {
        return Err(ProtocolError::Malformed(format!(
            "memory of {size} bytes where {bytes} were announced and {limit} are allowed"
        )));
    }
    let length = usize::try_from(size).map_err(|_| ProtocolError::Malformed(format!("{size} bytes")))?;
    // The offset is shared with the sender's descriptor.
    io::Seek::rewind(&mut file)?;
    let mut content = Vec::with_capacity(length);
    file.read_to_end(&mut content)?;
    if content.len() != length {
        return Err(ProtocolError::Malformed(format!(
            "{} bytes could be read of {length}",
            content.len()
        )));
    }
    Ok(content)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test
mod tests {
    use super::*;
    use crate::{ClusterUid, ContentHash, DataplaneStatus, PortStatus, Reply, Request};

    #[test]
    fn a_message_and_its_image_arrive_as_they_were_sent() {
        let (a, b) = Connection::pair().unwrap();
        let image: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let fd = image_memfd("test", &image).unwrap();
        let publish = Request::Publish {
            generation: 7,
            hash: ContentHash([0xab; 32]),
            bytes: image.len() as u64,
            base: None,
            cluster: ClusterUid::try_from("0b7d2bd0-7a3c".to_owned()).ok(),
        };
        a.send(&publish, Some(fd.as_fd())).unwrap();
        let received = b.receive::<Request>().unwrap();
        assert_eq!(received.message, publish);
        assert_eq!(
            read_image(received.fd.unwrap(), image.len() as u64).unwrap(),
            image
        );
    }

    #[test]
    fn a_cluster_is_named_by_a_short_uid() {
        let read = |text: &str| serde_json::from_str::<ClusterUid>(&format!("{text:?}"));
        let uid = "0b7d2bd0-7a3c-4d6e-8f10-3f1f6a1c2d3e";
        assert_eq!(read(uid).unwrap().to_string(), uid);
        for wrong in ["", "a b", "a/b", "\u{e9}", &"a".repeat(ClusterUid::MAX_BYTES + 1)] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_long_message_travels_in_memory() {
        let (a, b) = Connection::pair().unwrap();
        let ports = (0..4000)
            .map(|n| PortStatus {
                name: format!("veth{n}"),
                ..PortStatus::default()
            })
            .collect::<Vec<_>>();
        let reply = Reply::Status {
            status: Box::new(DataplaneStatus {
                ports,
                ..DataplaneStatus::default()
            }),
        };
        assert!(serde_json::to_vec(&reply).unwrap().len() > 10 * MAX_INLINE);
        a.send(&reply, None).unwrap();
        let received = b.receive::<Reply>().unwrap();
        assert_eq!(received.message, reply);
        assert!(received.fd.is_none());
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let (a, b) = Connection::pair().unwrap();
        let image = image_memfd("test", b"four").unwrap();
        assert!(
            matches!(read_image(image, 5), Err(ProtocolError::Malformed(_))),
            "another size"
        );

        let open = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(
            matches!(read_image(open, 0), Err(ProtocolError::Malformed(_))),
            "not sealed"
        );

        a.send_datagram(b"{\"type\":\"hallo\"}", None).unwrap();
        assert!(
            matches!(b.receive::<Request>(), Err(ProtocolError::Malformed(_))),
            "unknown message"
        );
        a.send_datagram(b"\xff", None).unwrap();
        assert!(
            matches!(b.receive::<Request>(), Err(ProtocolError::Malformed(_))),
            "not JSON"
        );
        a.send_datagram(&vec![b' '; MAX_INLINE + 1], None).unwrap();
        assert!(
            matches!(b.receive::<Request>(), Err(ProtocolError::Malformed(_))),
            "too long"
        );
        a.send_datagram(b"{\"spilled\":3}", None).unwrap();
        assert!(
            matches!(b.receive::<Request>(), Err(ProtocolError::Malformed(_))),
            "no memory"
        );

        b.set_receive_timeout(Some(Duration::from_millis(10))).unwrap();
        assert!(matches!(b.receive::<Request>(), Err(ProtocolError::TimedOut)));
        drop(a);
        assert!(matches!(b.receive::<Request>(), Err(ProtocolError::Closed)));
    }

    #[test]
    fn a_dead_socket_file_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o660
        );
        assert!(matches!(Listener::bind(&path), Err(ProtocolError::Listen { .. })));
        // The second attempt looked whether anybody listens.
        assert!(matches!(
            listener.accept().unwrap().receive::<Request>(),
            Err(ProtocolError::Closed)
        ));
        let client = Connection::connect(&path).unwrap();
        let server = listener.accept().unwrap();
        client.send(&Request::Status, None).unwrap();
        assert_eq!(server.receive::<Request>().unwrap().message, Request::Status);
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "left over").unwrap();
        assert!(Listener::bind(&path).is_ok());
    }

    #[test]
    fn messages_keep_their_names() {
        let hello = Reply::Hello {
            version: 1,
            generation: 3,
            hash: Some(ContentHash([1; 32])),
            cluster: None,
            workers: 2,
            pod_starts: Vec::new(),
        };
        assert_eq!(
            serde_json::to_string(&hello).unwrap(),
            format!(
                r#"{{"type":"hello","version":1,"generation":3,"hash":"{}","workers":2}}"#,
                "01".repeat(32)
            )
        );
        assert!("zz".repeat(32).parse::<ContentHash>().is_err());
        assert!("+1".repeat(32).parse::<ContentHash>().is_err());
    }
}
