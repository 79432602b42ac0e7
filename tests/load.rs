//! Clients that post each user until it is acknowledged, regardless of failures of the system. Meanwhile every function
//! is probed as in a cluster.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use domain::User;
use lambda_architecture::{burst::names, client::Client};
use rand::{RngExt, rngs::StdRng};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{function::PROBE_TIMEOUT, wire};

/// Number of concurrent clients.
const CLIENTS: usize = 64;
/// Delay before a client retries a refused post, or checks again for a released one.
const AGAIN: Duration = Duration::from_millis(20);

/// Delay before the next probe after a response.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// Readiness paths of all functions, through the gateway.
const PROBES: [&str; 5] = [
    "/ingress/readyz",
    "/function/count/readyz",
    "/function/store/readyz",
    "/function/batch/readyz",
    "/service-analytics/readyz",
];

/// State that all clients share.
pub struct Load {
    /// All posts in random order: each user as many times as it is sent.
    posts: Vec<User>,
    next: AtomicUsize,
    /// Number of posts that may be sent by now.
    released: AtomicUsize,
    acknowledged: Mutex<BTreeSet<Uuid>>,
    /// Current addresses of the runtimes. Clients are distributed over them.
    addresses: Mutex<Vec<SocketAddr>>,
}

impl Load {
    /// Creates a load of `users` users, each sent one to three times to one of `addresses`. No post is released yet.
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

    /// Starts the clients, and a prober for each function of each runtime. They end once there is nothing left to post.
    pub fn start(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let runtimes = self.addresses.lock().unwrap().len();
        let probers = (0..runtimes).flat_map(|runtime| PROBES.map(|path| (runtime, path)));
        let probers = probers.map(|(runtime, path)| tokio::spawn(prober(self.clone(), runtime, path)));
        (0..CLIENTS).map(|number| tokio::spawn(client(self.clone(), number))).chain(probers).collect()
    }

    /// Releases this part of all posts. Returns the number of posts sent once a third of the newly released ones is.
    pub fn release(&self, part: f64) -> usize {
        let now = (self.posts.len() as f64 * part) as usize;
        let before = self.released.swap(now, Ordering::Relaxed);
        before + (now - before) / 3
    }

    /// Waits until the clients have started `posts` posts.
    pub async fn until_sent(&self, posts: usize) {
        while !self.sent(posts) {
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Whether the clients have started `posts` posts.
    pub fn sent(&self, posts: usize) -> bool {
        self.next.load(Ordering::Relaxed) >= posts
    }

    /// Total number of posts.
    pub fn total(&self) -> usize {
        self.posts.len()
    }

    /// Sets the new address of a runtime.
    pub fn moved(&self, runtime: usize, to: SocketAddr) {
        self.addresses.lock().unwrap()[runtime] = to;
    }

    /// The ids of all acknowledged users.
    pub fn acknowledged(&self) -> BTreeSet<Uuid> {
        self.acknowledged.lock().unwrap().clone()
    }

    fn address(&self, client: usize) -> SocketAddr {
        let addresses = self.addresses.lock().unwrap();
        addresses[client % addresses.len()]
    }
}

/// Probes readiness as Knative's queue-proxy does: it closes the connection at the timeout and probes again at once.
async fn prober(load: Arc<Load>, runtime: usize, path: &str) {
    let request = wire::request("GET", path, &[], b"");
    // At the end, each client takes one more turn, for which there is no post.
    while !load.sent(load.total() + CLIENTS) {
        if wire::ask_and_hang_up(load.address(runtime), &request, PROBE_TIMEOUT).await.is_some() {
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
        // A runtime that is down refuses connections immediately.
        tokio::time::sleep(AGAIN).await;
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
