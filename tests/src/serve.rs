//! Servers inside a namespace: enough of HTTP for `curl`, an echo over UDP, streams for long transfers.

use std::{
    io::{self, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{BedError, Result, netns::Netns};

/// How long a server waits before it looks whether it should stop.
const TICK: Duration = Duration::from_millis(200);

/// Servers of one pod. They end when this is dropped.
#[derive(Debug)]
pub struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    wake: Vec<(Arc<Netns>, u16)>,
    connections: Arc<Mutex<Vec<Weak<TcpStream>>>>,
}

impl Servers {
    /// Serves TCP and UDP ports, both families, answering with `name`.
    ///
    /// TCP speaks HTTP/1.0: `GET /` answers the name; `GET /stream` sends until the client is gone; `GET /echo`
    /// answers a head and then echoes. UDP answers the name, a space and what was asked.
    ///
    /// # Errors
    /// A port is taken, or the namespace cannot be entered.
    pub fn start(namespace: &Arc<Netns>, name: &str, tcp: &[u16], udp: &[u16]) -> Result<Self> {
        let mut servers = Self {
            stop: Arc::default(),
            threads: Vec::new(),
            wake: Vec::new(),
            connections: Arc::default(),
        };
        for port in tcp {
            let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port));
            let listener = namespace
                .run(|| TcpListener::bind(address))?
                .map_err(|error| BedError::new(format!("{name}: TCP port {port}"), error))?;
            servers.wake.push((namespace.clone(), *port));
            let (stop, connections, name) =
                (servers.stop.clone(), servers.connections.clone(), name.to_owned());
            servers.threads.push(thread(format!("tcp {port}"), move || {
                accept(&listener, &name, &stop, &connections)
            })?);
        }
        for port in udp {
            let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port));
            let socket = namespace
                .run(|| UdpSocket::bind(address))?
                .map_err(|error| BedError::new(format!("{name}: UDP port {port}"), error))?;
            let (stop, name) = (servers.stop.clone(), name.to_owned());
            servers.threads.push(thread(format!("udp {port}"), move || {
                answer(&socket, &name, &stop)
            })?);
        }
        Ok(servers)
    }
}

fn thread(name: String, function: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name)
        .spawn(function)
        .map_err(|error| BedError::new("cannot start a thread", error))
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (namespace, port) in &self.wake {
            // The connection wakes `accept`; where it fails the listener is gone already.
            let address = SocketAddr::from((Ipv6Addr::LOCALHOST, *port));
            let _ = namespace.run(|| TcpStream::connect_timeout(&address, TICK));
        }
        if let Ok(connections) = self.connections.lock() {
            for connection in connections.iter().filter_map(Weak::upgrade) {
                let _ = connection.shutdown(std::net::Shutdown::Both);
            }
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn accept(
    listener: &TcpListener,
    name: &str,
    stop: &Arc<AtomicBool>,
    connections: &Mutex<Vec<Weak<TcpStream>>>,
) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((connection, _)) = listener.accept() else {
            continue;
        };
        let connection = Arc::new(connection);
        if let Ok(mut list) = connections.lock() {
            list.retain(|old| old.strong_count() > 0);
            list.push(Arc::downgrade(&connection));
        }
        let (name, stop) = (name.to_owned(), stop.clone());
        // A client that is gone is no failure of the server.
        let _ = thread("tcp connection".to_owned(), move || {
            drop(converse(&connection, &name, &stop))
        });
    }
}

fn converse(mut connection: &TcpStream, name: &str, stop: &AtomicBool) -> io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    connection.set_nodelay(true)?;
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        match connection.read(&mut buffer)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&buffer[..n]),
        }
        if request.len() > 65536 {
            return Ok(());
        }
    }
    let path = std::str::from_utf8(&request)
        .ok()
        .and_then(|text| text.split(' ').nth(1))
        .unwrap_or("/");
    let head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n";
    match path {
        "/stream" => {
            connection.set_write_timeout(Some(TICK))?;
            connection.write_all(format!("{head}\r\n").as_bytes())?;
            let block = [b'r'; 16384];
            while !stop.load(Ordering::Relaxed) {
                match connection.write(&block) {
                    Ok(_) => {}
                    Err(error) if would_block(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        "/echo" => {
            connection.set_read_timeout(Some(TICK))?;
            connection.write_all(format!("{head}\r\n").as_bytes())?;
            while !stop.load(Ordering::Relaxed) {
                match connection.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(n) => connection.write_all(&buffer[..n])?,
                    Err(error) if would_block(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        // In one piece: `write!` would send each part by itself.
        _ => connection
            .write_all(format!("{head}Content-Length: {}\r\n\r\n{name}\n", name.len() + 1).as_bytes())?,
    }
    Ok(())
}

fn would_block(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn answer(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    if socket.set_read_timeout(Some(TICK)).is_err() {
        return;
    }
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let mut reply = format!("{name} ").into_bytes();
        reply.extend_from_slice(&buffer[..length]);
        // An answer that cannot be sent is an answer that is not received.
        let _ = socket.send_to(&reply, from);
    }
}
