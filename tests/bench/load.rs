//! Lightweight load generator: raw HTTP/1.1 over keep-alive connections, one request at a time on each.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use lambda_architecture::burst::names;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The request that clients send.
#[derive(Clone, Copy)]
pub enum Request {
    /// `POST PREFIX/user` with a new user each time.
    User(&'static str),
    /// `GET /analytics`.
    Analytics,
}

impl Request {
    fn bytes(self, n: usize) -> Vec<u8> {
        match self {
            Self::User(prefix) => {
                let body = names::user(n).to_json();
                let head = format!(
                    "POST {prefix}/user HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                [head.into_bytes(), body].concat()
            }
            Self::Analytics => b"GET /analytics HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec(),
        }
    }
}

/// Measures requests per second that are answered with `status`, over `length`, after one second of warm-up.
pub async fn rate(
    address: SocketAddr,
    request: Request,
    connections: usize,
    status: u16,
    length: Duration,
) -> f64 {
    let (answered, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..connections)
        .map(|n| tokio::spawn(client(address, request, n, status, answered.clone(), stop.clone())))
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, started) = (answered.load(Relaxed), Instant::now());
    tokio::time::sleep(length).await;
    let rate = (answered.load(Relaxed) - before) as f64 / started.elapsed().as_secs_f64();
    stop.store(true, Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    rate
}

async fn client(
    address: SocketAddr,
    request: Request,
    n: usize,
    status: u16,
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) {
    let mut connection = Connection::open(address).await;
    for turn in 0.. {
        if stop.load(Relaxed) {
            return;
        }
        connection.exchange(&request.bytes(n * 7_919 + turn), status).await;
        answered.fetch_add(1, Relaxed);
    }
}

/// Measures the latency of each request in milliseconds: sequential requests on one connection for `length`.
pub async fn times(address: SocketAddr, request: Request, status: u16, length: Duration) -> Vec<f64> {
    let (mut connection, mut times) = (Connection::open(address).await, Vec::new());
    let begun = Instant::now();
    for n in 0.. {
        if begun.elapsed() > length {
            break;
        }
        let bytes = request.bytes(n);
        let started = Instant::now();
        connection.exchange(&bytes, status).await;
        times.push(started.elapsed().as_secs_f64() * 1_000.0);
    }
    times
}

/// A keep-alive connection.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// Sends a request and reads the response. Panics if its status is not `status`.
    async fn exchange(&mut self, request: &[u8], status: u16) {
        self.stream.write_all(request).await.unwrap();
        self.buffer.clear();
        while !whole(&self.buffer) {
            assert!(self.stream.read_buf(&mut self.buffer).await.unwrap() > 0, "the server hung up");
        }
        let expected = format!("HTTP/1.1 {status}");
        assert!(self.buffer.starts_with(expected.as_bytes()), "{}", String::from_utf8_lossy(&self.buffer));
    }
}

/// Whether the buffer has a complete response, whose body has the length of `content-length`.
fn whole(buffer: &[u8]) -> bool {
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&buffer[..end]);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    buffer.len() >= end + 4 + length.unwrap_or(0)
}
