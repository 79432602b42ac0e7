//! Counters and histograms in Prometheus' format, served at `/metrics` on `METRICS_PORT`.

use std::{sync::LazyLock, time::Duration};

use http::{Method, StatusCode};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{
    error::Error,
    progress,
    router::{Router, answer},
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    method: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Task {
    task: String,
}

struct Metrics {
    registry: Registry,
    restarts: Family<Task, Counter>,
    requests: Family<Labels, Counter>,
    seconds: Histogram,
    commit_seconds: Gauge,
    commits_failed: Gauge,
}

/// One registry per process: a process serves one function.
static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let mut registry = Registry::default();
    let requests = Family::<Labels, Counter>::default();
    let seconds = Histogram::new(exponential_buckets(0.000_1, 2.0, 18));
    registry.register("http_requests", "Requests answered", requests.clone());
    registry.register("http_request_duration_seconds", "Time from headers to answer", seconds.clone());
    let (commit_seconds, commits_failed) = (Gauge::default(), Gauge::default());
    let help = "How long the oldest commit under way has been so; it grows while writing makes no progress";
    registry.register("commit_under_way_seconds", help, commit_seconds.clone());
    registry.register("commits_failed", "Commits that failed since the start", commits_failed.clone());
    let restarts = Family::<Task, Counter>::default();
    registry.register("task_restarts", "Restarts of tasks that panicked", restarts.clone());
    Metrics { registry, restarts, requests, seconds, commit_seconds, commits_failed }
});

/// Counts an answered request.
pub fn answered(method: &Method, status: StatusCode, took: Duration) {
    let labels = Labels { method: method.as_str().to_owned(), status: status.as_u16() };
    METRICS.requests.get_or_create(&labels).inc();
    METRICS.seconds.observe(took.as_secs_f64());
}

/// Counts a restart of a supervised task.
pub fn restarted(task: &str) {
    METRICS.restarts.get_or_create(&Task { task: task.to_owned() }).inc();
}

/// `GET /metrics`.
pub fn router() -> Router<()> {
    Router::new(()).get("/metrics", |(), _| async {
        let (oldest, failed) = progress::measure();
        METRICS.commit_seconds.set(i64::try_from(oldest.as_secs()).unwrap_or(i64::MAX));
        METRICS.commits_failed.set(i64::try_from(failed).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &METRICS.registry).map_err(|e| Error::unavailable(&e))?;
        Ok(answer(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text))
    })
}
