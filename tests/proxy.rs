//! A TCP proxy on loopback that simulates a slow, silent or interrupted network.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

/// Maximum number of chunks in flight in one direction.
const IN_FLIGHT: usize = 1_024;

/// A proxy in a separate thread, so that a busy test does not slow it down. It stops when dropped.
pub struct Proxy {
    /// The address on which it listens.
    pub address: SocketAddr,
    cut: watch::Sender<bool>,
    #[expect(dead_code, reason = "its end stops the thread")]
    stop: oneshot::Sender<()>,
}

impl Proxy {
    /// Starts a proxy that forwards to `host:port` and delays each byte by `delay` in both directions.
    pub fn start(target: &str, delay: Duration) -> Self {
        Self::run(Some(target.to_owned()), delay)
    }

    /// Starts a proxy that accepts connections and never responds.
    pub fn silent() -> Self {
        Self::run(None, Duration::ZERO)
    }

    fn run(target: Option<String>, delay: Duration) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, is_cut) = watch::channel(false);
        let (stop, stopped) = oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, target, delay, is_cut) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, cut, stop }
    }

    /// Blocks all connections in both directions: no data, close or reset passes.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Unblocks all connections and forwards what was held back.
    pub fn heal(&self) {
        self.cut.send_replace(false);
    }
}

async fn accept(
    listener: std::net::TcpListener,
    target: Option<String>,
    delay: Duration,
    is_cut: watch::Receiver<bool>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    let mut silent = Vec::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        match target.clone() {
            Some(target) => drop(tokio::spawn(forward(client, target, delay, is_cut.clone()))),
            None => silent.push(client),
        }
    }
}

async fn forward(client: TcpStream, target: String, delay: Duration, mut is_cut: watch::Receiver<bool>) {
    // The handshake takes a round trip, too.
    tokio::time::sleep(delay * 2).await;
    if is_cut.wait_for(|cut| !cut).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(
        pump(from_client, to_server, delay, is_cut.clone()),
        pump(from_server, to_client, delay, is_cut)
    );
}

/// Forwards one direction of a connection, including its end.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    mut is_cut: watch::Receiver<bool>,
) {
    let (chunks, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let read = async move {
        loop {
            let mut chunk = Vec::with_capacity(16 * 1024);
            let ended = !matches!(from.read_buf(&mut chunk).await, Ok(read) if read > 0);
            // An empty chunk marks the end.
            if chunks.send((Instant::now() + delay, chunk)).await.is_err() || ended {
                return;
            }
        }
    };
    let write = async move {
        while let Some((at, chunk)) = due.recv().await {
            sleep_until(at).await;
            if is_cut.wait_for(|cut| !cut).await.is_err() || chunk.is_empty() {
                break;
            }
            if to.write_all(&chunk).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
