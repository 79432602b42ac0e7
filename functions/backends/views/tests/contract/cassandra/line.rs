//! A line to a node: passes bytes on, and can be cut, hung up or stalled.

use std::sync::{Arc, Mutex};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    /// Whoever calls is hung up on.
    HungUp,
    /// Whoever calls is let in and hears nothing.
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
                    calls.spawn(pass_on(call, node.clone(), seen.clone()));
                }
            }
        });
        Self { address, state, calls, listening }
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Ends all calls; answers how many there were.
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

async fn pass_on(mut call: TcpStream, node: String, mut state: watch::Receiver<State>) {
    // Bytes that wait while it is stalled are lost with the call, as when a machine goes away.
    if *state.borrow_and_update() == State::Open
        && let Ok(mut server) = TcpStream::connect(&node).await
    {
        tokio::select! {
            _ = copy_bidirectional(&mut call, &mut server) => return,
            _ = state.changed() => {}
        }
    }
    std::future::pending::<()>().await;
}
