//! Kills functions and the runtime at random under load. Afterwards all stores must agree exactly.

use std::{collections::BTreeSet, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use uuid::Uuid;

use crate::{
    app::{App, signal},
    load::Load,
    walkthrough::counts,
};

/// Number of users per run, each sent one to three times.
const USERS: usize = 5_000;
/// Number of times that the whole runtime is killed.
const RUNTIME_KILLS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_lose_nothing_and_count_nothing_twice() {
    let seeds = std::env::var("CHAOS_SEEDS").unwrap_or_else(|_| "1".to_owned());
    for seed in seeds.split(',') {
        chaos(seed.trim().parse().unwrap()).await;
    }
}

async fn chaos(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut app = App::start().await;
    let load = Load::new(USERS, &mut random, vec![app.address]);
    let clients = load.start();
    load.release(1.0);
    for kill in 1..=RUNTIME_KILLS {
        while !load.sent(load.total() * kill / (RUNTIME_KILLS + 1)) {
            kill_a_function(&mut app, &mut random).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(20..200))).await;
        }
        app.kill_and_restart();
        load.moved(0, app.address);
    }
    for client in clients {
        client.await.unwrap();
    }
    for _ in 0..5 {
        kill_a_function(&mut app, &mut random).await;
    }
    let acknowledged = load.acknowledged();
    assert_eq!(acknowledged.len(), USERS);
    agree(&mut app, &acknowledged, seed).await;
}

async fn kill_a_function(app: &mut App, random: &mut StdRng) {
    let pids = app.function_pids().await;
    if !pids.is_empty() {
        signal(pids[random.random_range(0..pids.len())], Signal::KILL);
    }
}

/// Waits until everything is processed. Then analytics, the master dataset and the views must agree.
pub async fn agree(app: &mut App, acknowledged: &BTreeSet<Uuid>, seed: u64) {
    let all = acknowledged.len() as u64;
    app.settle().await;
    let counts = counts(&app.get("/service-analytics/analytics?limit=10000").await);
    assert!(counts.is_sorted_by(|a, b| a < b), "seed {seed}: the history does not grow: {counts:?}");
    assert_eq!(counts.last(), Some(&all), "seed {seed}");
    let (incremental, full) = (app.tick("").await, app.tick("?full=true").await);
    assert_eq!(incremental["users"], full["users"], "seed {seed}");
    assert_eq!(incremental["longestNameUser"], full["longestNameUser"], "seed {seed}");
    assert_eq!(app.stop(), Some(0), "seed {seed}");
    let data = app.data.path();
    assert_eq!(&app.stores.stored(data).await, acknowledged, "seed {seed}: master");
    assert_eq!(&app.stores.counted(data).await, acknowledged, "seed {seed}: views");
}
