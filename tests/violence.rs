//! Everything is killed at random under load; what is left must agree exactly.

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
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use shared::user::User;
use uuid::Uuid;

use crate::{
    app::{App, signal},
    walkthrough::counts,
};

/// Users of one run.
const USERS: usize = 5_000;
/// Clients that post them.
const CLIENTS: usize = 64;
/// How often the whole runtime is killed.
const RUNTIME_KILLS: usize = 3;

/// What the clients do, seen by all of them.
struct Load {
    /// Each user as often as it is sent.
    posts: Vec<User>,
    next: AtomicUsize,
    acknowledged: Mutex<BTreeSet<Uuid>>,
    /// Where the runtime listens now.
    address: Mutex<SocketAddr>,
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_lose_nothing_and_count_nothing_twice() {
    let seeds = std::env::var("VIOLENCE_SEEDS").unwrap_or_else(|_| "1".to_owned());
    for seed in seeds.split(',') {
        violence(seed.trim().parse().unwrap()).await;
    }
}

async fn violence(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut app = App::start().await;
    let users: Vec<_> = (0..USERS).map(names::user).collect();
    let mut posts: Vec<_> = users
        .iter()
        .flat_map(|user| std::iter::repeat_n(user, random.random_range(1..=3)))
        .cloned()
        .collect();
    for last in (1..posts.len()).rev() {
        posts.swap(last, random.random_range(0..=last));
    }
    let total = posts.len();
    let load = Arc::new(Load {
        posts,
        next: AtomicUsize::new(0),
        acknowledged: Mutex::default(),
        address: Mutex::new(app.address),
    });
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(client(load.clone()))).collect();
    for kill in 1..=RUNTIME_KILLS {
        let until = total * kill / (RUNTIME_KILLS + 1);
        while load.next.load(Ordering::Relaxed) < until {
            kill_a_function(&mut app, &mut random).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(20..200))).await;
        }
        app.kill_and_restart();
        *load.address.lock().unwrap() = app.address;
    }
    for client in clients {
        client.await.unwrap();
    }
    for _ in 0..5 {
        kill_a_function(&mut app, &mut random).await;
    }
    let acknowledged = load.acknowledged.lock().unwrap().clone();
    assert_eq!(acknowledged, users.iter().map(|user| user.id).collect());
    agree(&mut app, &acknowledged, seed).await;
}

/// Posts what is next until each is acknowledged, whatever happens to the server meanwhile.
async fn client(load: Arc<Load>) {
    let mut address = *load.address.lock().unwrap();
    let mut client = Client::new(address);
    while let Some(user) = load.posts.get(load.next.fetch_add(1, Ordering::Relaxed)) {
        loop {
            let answer = client.post_json("/ingress/user", user.to_json()).await;
            if answer.is_ok_and(|answer| answer.status() == 201) {
                load.acknowledged.lock().unwrap().insert(user.id);
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = *load.address.lock().unwrap();
            if now != address {
                (address, client) = (now, Client::new(now));
            }
        }
    }
}

async fn kill_a_function(app: &mut App, random: &mut StdRng) {
    let pids = app.function_pids().await;
    if !pids.is_empty() {
        signal(pids[random.random_range(0..pids.len())], Signal::KILL);
    }
}

async fn agree(app: &mut App, acknowledged: &BTreeSet<Uuid>, seed: u64) {
    let all = acknowledged.len() as u64;
    app.eventually(&format!("all are counted, seed {seed}"), async |app| app.user_count().await >= all).await;
    app.settle().await;
    let counts = counts(&app.get("/service-analytics/analytics?limit=10000").await);
    assert!(counts.is_sorted_by(|a, b| a < b), "seed {seed}: the history does not grow: {counts:?}");
    assert_eq!(counts.last(), Some(&all), "seed {seed}");
    let (incremental, full) = (app.tick("").await, app.tick("?full=true").await);
    assert_eq!(incremental["users"], full["users"], "seed {seed}");
    assert_eq!(incremental["longestNameUser"], full["longestNameUser"], "seed {seed}");
    assert_eq!(app.stop(), Some(0), "seed {seed}");
    let data = app.data.path();
    assert_eq!(&app.place.stored(data).await, acknowledged, "seed {seed}: master");
    assert_eq!(&app.place.counted(data).await, acknowledged, "seed {seed}: views");
}
