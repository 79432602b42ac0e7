//! What the clock does to a PingSource.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use eventing::{manifest::Manifest, ping};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::harness::{Function, status};

/// Runs the project's PingSource from 10:00:30 for so many minutes, with a clock that is set by `step` after half a
/// minute and a second; answers the times of its ticks by that clock.
async fn ticks(step: TimeDelta, minutes: u64) -> Vec<String> {
    let text = include_str!("../../minute-to-batch.yaml");
    let Manifest::PingSource(source) = eventing::manifest::read("f", text).unwrap().remove(0) else {
        panic!("no PingSource")
    };
    let (begun, begin) = (Instant::now(), "2026-03-01T10:00:30Z".parse::<DateTime<Utc>>().unwrap());
    let set = Arc::new(AtomicI64::new(0));
    let seen = set.clone();
    let clock: ping::Clock = Arc::new(move || {
        let went_by = TimeDelta::from_std(begun.elapsed()).unwrap();
        begin + went_by + TimeDelta::milliseconds(seen.load(SeqCst))
    });
    let times = Arc::new(Mutex::new(Vec::new()));
    let (by, noted) = (clock.clone(), times.clone());
    let batch = Function::new(Duration::ZERO, move |_| {
        noted.lock().unwrap().push(by().format("%H:%M").to_string());
        status(200)
    });
    let stop = CancellationToken::new();
    let running =
        tokio::spawn(ping::play_by(clock, source.metadata, source.spec, batch, Arc::default(), stop.clone()));
    sleep(Duration::from_millis(31_500)).await;
    set.store(step.num_milliseconds(), SeqCst);
    sleep(Duration::from_secs(60 * minutes)).await;
    stop.cancel();
    running.await.unwrap();
    times.lock().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn ticks_follow_a_clock_that_is_set_back() {
    assert_eq!(ticks(TimeDelta::hours(-1), 3).await, ["10:01", "09:02", "09:03", "09:04"]);
}

#[tokio::test(start_paused = true)]
async fn ticks_follow_a_clock_that_is_set_forth_without_a_burst() {
    assert_eq!(ticks(TimeDelta::hours(1), 3).await, ["10:01", "11:02", "11:03", "11:04"]);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_corrected_a_little_neither_skips_nor_doubles_a_tick() {
    // Back to 10:00:59.6 right after the tick of 10:01.
    assert_eq!(ticks(TimeDelta::milliseconds(-1_900), 3).await, ["10:01", "10:02", "10:03"]);
}
