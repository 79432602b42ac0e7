//! A TCP proxy to a node. Forwards bytes, immediately or delayed, and can cut, refuse or stall connections.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    /// Closes new connections immediately.
    HungUp,
    /// Accepts connections and sends nothing.
    Stalled,
}

pub struct Line {
    address: String,
    state: watch::Sender<State>,
    calls: Arc<Mutex<JoinSet<()>>>,
    #[expect(dead_code, reason = "ends with the line")]
    listening: JoinSet<()>,
}

impl Line {
    pub async fn to(node: String) -> Self {
        Self::delayed(node, Duration::ZERO).await
    }

    /// Starts a proxy that delays bytes by `delay` in each direction.
    pub async fn delayed(node: String, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (state, seen) = watch::channel(State::Open);
        let calls = Arc::<Mutex<JoinSet<()>>>::default();
        let (mut listening, under_way) = (JoinSet::new(), calls.clone());
        listening.spawn(async move {
            loop {
                let (call, _) = listener.accept().await.unwrap();
                let mut calls = under_way.lock().unwrap();
                while calls.try_join_next().is_some() {}
                if *seen.borrow() != State::HungUp {
                    calls.spawn(pass_on(call, node.clone(), delay, seen.clone()));
                }
            }
        });
        Self { address, state, calls, listening }
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Aborts all connections. Returns their number.
    pub fn cut(&self) -> usize {
        let mut calls = self.calls.lock().unwrap();
        while calls.try_join_next().is_some() {}
        calls.abort_all();
        calls.len()
    }

    pub fn hang_up(&self) {
        self.state.send_replace(State::HungUp);
        self.cut();
    }

    pub fn stall(&self) {
        self.state.send_replace(State::Stalled);
    }

    pub fn mend(&self) {
        self.state.send_replace(State::Open);
    }
}

async fn pass_on(mut call: TcpStream, node: String, delay: Duration, mut state: watch::Receiver<State>) {
    // Bytes that wait while the proxy is stalled are lost with the connection, as when a machine fails.
    if *state.borrow_and_update() == State::Open
        && let Ok(mut server) = TcpStream::connect(&node).await
    {
        tokio::select! {
            () = pass_both_ways(&mut call, &mut server, delay) => return,
            _ = state.changed() => {}
        }
    }
    std::future::pending::<()>().await;
}

async fn pass_both_ways(call: &mut TcpStream, server: &mut TcpStream, delay: Duration) {
    let (call_read, call_write) = call.split();
    let (server_read, server_write) = server.split();
    tokio::select! {
        () = pass_one_way(call_read, server_write, delay) => {}
        () = pass_one_way(server_read, call_write, delay) => {}
    }
}

/// Delays each chunk without blocking the chunks behind it.
async fn pass_one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let _ = sender.send((Instant::now() + delay, buffer[..read].to_vec()));
        }
    };
    let write = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
