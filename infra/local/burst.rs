//! `burst`: posts many new users at once and waits until analytics counts each of them exactly once.
//! Uses only the system's public routes.

pub mod names;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use hyper::StatusCode;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::time::sleep;

use crate::{client::Client, terminal::print};

/// How long a request is retried that is refused or gets no response.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long analytics may take to become exact.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Interval at which analytics and status are polled.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What to post.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Burst {
    /// How many new users to post
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub users: u32,
    /// How many connections post at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub concurrency: u32,
    /// Each user is sent 1 to this many times
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeats: u32,
}

/// The largest number of replicas seen of each function.
type Replicas = Arc<Mutex<BTreeMap<String, usize>>>;

/// Posts to the gateway at `address`, prints the result, and fails unless analytics becomes exact.
pub async fn run(address: SocketAddr, burst: Burst) -> anyhow::Result<()> {
    let before = settled(address).await?;
    let replicas = Replicas::default();
    let watch = tokio::spawn(watch_replicas(address, replicas.clone()));
    let started = Instant::now();
    let posted = post(address, burst).await?;
    let acknowledged = Instant::now();
    posted.print();
    let expected = before + u64::from(burst.users);
    let exact = until_exact(address, expected).await;
    let exact_at = Instant::now();
    watch.abort();
    let seen: Vec<_> = lock(&replicas).iter().map(|(name, most)| format!("{name} {most}")).collect();
    print(&format!("replicas at most   {}", seen.join(", ")));
    exact?;
    print(&format!(
        "analytics exact    {expected} users, {:.2} s after the last answer, {:.2} s after the first request",
        (exact_at - acknowledged).as_secs_f64(),
        (exact_at - started).as_secs_f64(),
    ));
    Ok(())
}

/// The result of posting.
struct Posted {
    latencies: Histogram<u64>,
    repeated: usize,
    took: Duration,
}

impl Posted {
    fn print(&self) {
        let requests = self.latencies.len();
        let rate = requests as f64 / self.took.as_secs_f64();
        let seconds = self.took.as_secs_f64();
        print(&format!("acknowledged       {requests} requests in {seconds:.2} s, {rate:.0}/s"));
        let ms = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1_000.0;
        print(&format!(
            "latency            p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
            ms(0.5),
            ms(0.9),
            ms(0.99),
            self.latencies.max() as f64 / 1_000.0
        ));
        if self.repeated > 0 {
            let repeated = self.repeated;
            print(&format!("sent again         {repeated} requests that were refused or got no answer"));
        }
    }
}

async fn post(address: SocketAddr, burst: Burst) -> anyhow::Result<Posted> {
    let bodies = Arc::new(bodies(burst));
    let style = "{bar:40} {pos}/{len} {per_sec} {eta}";
    let bar = ProgressBar::new(bodies.len() as u64).with_style(ProgressStyle::with_template(style)?);
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let clients: Vec<_> = (0..burst.concurrency)
        .map(|_| tokio::spawn(client(address, bodies.clone(), next.clone(), bar.clone())))
        .collect();
    let mut posted = Posted { latencies: histogram()?, repeated: 0, took: Duration::ZERO };
    for client in clients {
        let (latencies, repeated) = client.await??;
        posted.latencies.add(latencies)?;
        posted.repeated += repeated;
    }
    posted.took = started.elapsed();
    bar.finish_and_clear();
    Ok(posted)
}

/// Each user as often as it is to be sent. Repeats come later than first requests, as retries of real clients do.
fn bodies(burst: Burst) -> Vec<Bytes> {
    let users: Vec<Bytes> = (0..burst.users as usize).map(|n| names::user(n).to_json().into()).collect();
    let mut bodies = users.clone();
    for round in 1..burst.repeats as usize {
        bodies.extend(
            users
                .iter()
                .enumerate()
                .filter(|(n, _)| n % burst.repeats as usize >= round)
                .map(|(_, b)| b.clone()),
        );
    }
    bodies
}

/// Posts the next user until none is left. Returns the latencies and the number of retries.
async fn client(
    address: SocketAddr,
    bodies: Arc<Vec<Bytes>>,
    next: Arc<AtomicUsize>,
    bar: ProgressBar,
) -> anyhow::Result<(Histogram<u64>, usize)> {
    let mut client = Client::new(address);
    let (mut latencies, mut repeated) = (histogram()?, 0);
    while let Some(body) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
        let started = Instant::now();
        loop {
            let refusal = match client.post_json("/ingress/user", body.clone()).await {
                Ok(answer) if answer.status() == StatusCode::CREATED => break,
                Ok(answer)
                    if answer.status().is_client_error()
                        && answer.status() != StatusCode::TOO_MANY_REQUESTS =>
                {
                    bail!("a user was rejected: {}", String::from_utf8_lossy(answer.body()))
                }
                Ok(answer) => answer.status().to_string(),
                Err(error) => error.to_string(),
            };
            if started.elapsed() > RETRY_TIMEOUT {
                bail!("a user was not acknowledged in {RETRY_TIMEOUT:?}; the last answer was: {refusal}");
            }
            repeated += 1;
            sleep(POLL_INTERVAL).await;
        }
        latencies.saturating_record(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
        bar.inc(1);
    }
    Ok((latencies, repeated))
}

/// Latencies in microseconds, to three digits.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, RETRY_TIMEOUT.as_micros() as u64 * 2, 3)?)
}

/// The number of users, once everything that was ingested earlier is processed.
async fn settled(address: SocketAddr) -> anyhow::Result<u64> {
    let mut client = Client::new(address);
    let started = Instant::now();
    loop {
        let status =
            json(&mut client, "/status").await.with_context(|| format!("nothing answers at {address}"))?;
        let lag: i64 = items(&status, "arrows").filter_map(|arrow| arrow["lag"].as_i64()).sum();
        if lag == 0 {
            return count(&mut client).await;
        }
        if started.elapsed() > SETTLE_TIMEOUT {
            bail!("{lag} earlier events are still not processed");
        }
        sleep(POLL_INTERVAL).await;
    }
}

async fn until_exact(address: SocketAddr, expected: u64) -> anyhow::Result<()> {
    let mut client = Client::new(address);
    let started = Instant::now();
    loop {
        let count = count(&mut client).await?;
        if count == expected {
            // A user that was counted twice would show only a moment later.
            return match settled(address).await? {
                settled if settled == expected => Ok(()),
                settled => bail!("analytics counts {settled} users, {expected} were acknowledged"),
            };
        }
        if count > expected || started.elapsed() > SETTLE_TIMEOUT {
            bail!("analytics counts {count} users, {expected} were acknowledged");
        }
        sleep(POLL_INTERVAL).await;
    }
}

async fn count(client: &mut Client) -> anyhow::Result<u64> {
    let analytics = json(client, "/service-analytics/analytics?limit=1").await?;
    Ok(analytics["userCount"][0]["userCount"].as_u64().unwrap_or(0))
}

async fn watch_replicas(address: SocketAddr, most: Replicas) {
    let mut client = Client::new(address);
    loop {
        if let Ok(status) = json(&mut client, "/status").await {
            for function in items(&status, "functions") {
                let replicas = function["replicas"].as_array().map_or(0, Vec::len);
                let name = function["name"].as_str().unwrap_or_default().to_owned();
                let mut most = lock(&most);
                let seen = most.entry(name).or_default();
                *seen = replicas.max(*seen);
            }
        }
        sleep(POLL_INTERVAL).await;
    }
}

async fn json(client: &mut Client, path: &str) -> anyhow::Result<Value> {
    let answer = client.get(path).await?;
    if !answer.status().is_success() {
        bail!("GET {path}: {} {}", answer.status(), String::from_utf8_lossy(answer.body()));
    }
    Ok(serde_json::from_slice(answer.body())?)
}

fn items<'a>(status: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    status[name].as_array().into_iter().flatten()
}

fn lock(replicas: &Replicas) -> std::sync::MutexGuard<'_, BTreeMap<String, usize>> {
    replicas.lock().unwrap_or_else(PoisonError::into_inner)
}
