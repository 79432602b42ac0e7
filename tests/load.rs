//! Clients that post users until each is acknowledged, whatever happens to the system meanwhile.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lambda_architecture::{burst::names, client::Client};
use rand::{RngExt, rngs::StdRng};
use shared::user::User;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Clients that post at once.
const CLIENTS: usize = 64;
/// How long a client waits that was refused, or that has nothing to post yet.
const AGAIN: Duration = Duration::from_millis(20);

/// What the clients do, seen by all of them.
pub struct Load {
    /// Each user as often as it is sent, in a random order.
    posts: Vec<User>,
    next: AtomicUsize,
    /// How many of the posts may be sent by now.
    released: AtomicUsize,
    acknowledged: Mutex<BTreeSet<Uuid>>,
    /// Where the runtimes listen now; clients take turns.
    addresses: Mutex<Vec<SocketAddr>>,
}

impl Load {
    /// So many users, each to be sent one to three times to one of these addresses; nothing is released yet.
    pub fn new(users: usize, random: &mut StdRng, addresses: Vec<SocketAddr>) -> Arc<Self> {
        let mut posts = Vec::new();
        for user in (0..users).map(names::user) {
            posts.extend(std::iter::repeat_n(user, random.random_range(1..=3)));
        }
        for last in (1..posts.len()).rev() {
            posts.swap(last, random.random_range(0..=last));
        }
        Arc::new(Self {
            posts,
            next: AtomicUsize::new(0),
            released: AtomicUsize::new(0),
            acknowledged: Mutex::default(),
            addresses: Mutex::new(addresses),
        })
    }

    /// Starts the clients; each ends once there is nothing left to post.
    pub fn start(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        (0..CLIENTS).map(|number| tokio::spawn(client(self.clone(), number))).collect()
    }

    /// Lets the clients send this part of all posts; answers how many are sent when a third of what is new of it is.
    pub fn release(&self, part: f64) -> usize {
        let now = (self.posts.len() as f64 * part) as usize;
        let before = self.released.swap(now, Ordering::Relaxed);
        before + (now - before) / 3
    }

    /// Waits until so many posts were begun.
    pub async fn until_sent(&self, posts: usize) {
        while !self.sent(posts) {
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Whether so many posts were begun.
    pub fn sent(&self, posts: usize) -> bool {
        self.next.load(Ordering::Relaxed) >= posts
    }

    /// How many posts there are.
    pub fn total(&self) -> usize {
        self.posts.len()
    }

    /// A runtime listens elsewhere now.
    pub fn moved(&self, runtime: usize, to: SocketAddr) {
        self.addresses.lock().unwrap()[runtime] = to;
    }

    /// The ids of all users that were acknowledged.
    pub fn acknowledged(&self) -> BTreeSet<Uuid> {
        self.acknowledged.lock().unwrap().clone()
    }

    fn address(&self, client: usize) -> SocketAddr {
        let addresses = self.addresses.lock().unwrap();
        addresses[client % addresses.len()]
    }
}

async fn client(load: Arc<Load>, number: usize) {
    let mut address = load.address(number);
    let mut client = Client::new(address);
    loop {
        let turn = load.next.fetch_add(1, Ordering::Relaxed);
        let Some(user) = load.posts.get(turn) else { return };
        while turn >= load.released.load(Ordering::Relaxed) {
            tokio::time::sleep(AGAIN).await;
        }
        loop {
            let answer = client.post_json("/ingress/user", user.to_json()).await;
            if answer.is_ok_and(|answer| answer.status() == 201) {
                load.acknowledged.lock().unwrap().insert(user.id);
                break;
            }
            tokio::time::sleep(AGAIN).await;
            let now = load.address(number);
            if now != address {
                (address, client) = (now, Client::new(now));
            }
        }
    }
}
