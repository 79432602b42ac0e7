//! Clients that post users until each is acknowledged, whatever happens to the system meanwhile; beside them, every
//! function is probed as in a cluster.

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

/// Clients that post at once.
const CLIENTS: usize = 64;
/// How long a client waits that was refused, or that has nothing to post yet.
const AGAIN: Duration = Duration::from_millis(20);

/// How long a prober waits before it asks again where it had an answer.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// Readiness of every function, through the gateway.
const PROBES: [&str; 5] = [
    "/ingress/readyz",
    "/function/count/readyz",
    "/function/store/readyz",
    "/function/batch/readyz",
    "/service-analytics/readyz",
];

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

    /// Starts the clients, and a prober of each function of each runtime; each ends once there is nothing left to post.
    pub fn start(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let runtimes = self.addresses.lock().unwrap().len();
        let probers = (0..runtimes).flat_map(|runtime| PROBES.map(|path| (runtime, path)));
        let probers = probers.map(|(runtime, path)| tokio::spawn(prober(self.clone(), runtime, path)));
        (0..CLIENTS).map(|number| tokio::spawn(client(self.clone(), number))).chain(probers).collect()
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

/// Asks for readiness, hangs up when the answer takes too long, and asks again at once, as Knative's queue-proxy does.
async fn prober(load: Arc<Load>, runtime: usize, path: &str) {
    let request = wire::request("GET", path, &[], b"");
    // Each client takes one turn more than there are posts.
    while !load.sent(load.total() + CLIENTS) {
        if wire::ask_and_hang_up(load.address(runtime), &request, PROBE_TIMEOUT).await.is_some() {
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
        // A runtime that is down refuses at once.
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
