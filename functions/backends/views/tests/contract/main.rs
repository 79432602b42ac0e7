//! What every implementation of `Views` promises, run against each of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use domain::{Point, Window};
use proptest::prelude::*;
use tokio::time::timeout;
use uuid::Uuid;

/// Cases that only a server has.
#[cfg(feature = "services")]
mod cassandra;
/// Storage of each implementation during a test.
mod fixture;

use fixture::Fixture;

const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Longer than the time since 1970.
const EVER: Duration = Duration::from_secs(u32::MAX as u64);
const ALL: Window = Window { from: None, to: None, above: None, below: None, step_s: None, limit: 100_000 };

fn ids(n: usize) -> Vec<Uuid> {
    (0..n).map(|_| Uuid::new_v4()).collect()
}

fn counts(points: &[Point]) -> Vec<u64> {
    points.iter().map(|p| p.user_count).collect()
}

async fn nothing_counted_is_an_empty_history(fixture: &Fixture) {
    let views = fixture.views(WEEK);
    assert_eq!(views.total().await.unwrap(), 0);
    assert!(views.points(ALL).await.unwrap().is_empty());
    assert_eq!(views.oldest().await.unwrap(), None);
    views.ready().await.unwrap();
    views.count(Vec::new()).await.unwrap();
    assert!(views.points(ALL).await.unwrap().is_empty());
}

async fn an_id_counts_once_however_often_it_comes(fixture: &Fixture) {
    let (views, ids) = (fixture.views(WEEK), ids(10));
    views.count(vec![ids[0], ids[0], ids[1]]).await.unwrap();
    views.count(vec![ids[0]]).await.unwrap();
    views.count(ids.clone()).await.unwrap();
    fixture.views(WEEK).count(ids.clone()).await.unwrap();
    views.count(vec![ids[3]]).await.unwrap();
    assert_eq!(views.total().await.unwrap(), 10);
    assert_eq!(counts(&views.points(ALL).await.unwrap()), [10, 2]);
    assert_eq!(views.oldest().await.unwrap().unwrap().user_count, 2);
}

async fn many_counters_at_once_agree_on_one_growing_history(fixture: &Fixture) {
    let ids = Arc::new(ids(300));
    let counters: Vec<_> = (0..6)
        .map(|n| {
            let (views, ids) = (fixture.views(WEEK), ids.clone());
            tokio::spawn(async move {
                for start in 0..30 {
                    let chunk = ids.iter().cycle().skip((start * 7 + n * 50) % 300).take(20).copied();
                    // Each chunk includes a new id that is counted only once.
                    views.count(chunk.chain([Uuid::new_v4()]).collect()).await.unwrap();
                }
                views.count(ids.to_vec()).await.unwrap();
            })
        })
        .collect();
    for counter in counters {
        counter.await.unwrap();
    }
    let views = fixture.views(WEEK);
    let history = views.points(ALL).await.unwrap();
    assert_eq!((history[0].user_count, views.total().await.unwrap()), (480, 480));
    assert!(counts(&history).is_sorted_by(|a, b| a > b) && history.is_sorted_by(|a, b| a.time >= b.time));
    assert_eq!(history.iter().map(|p| p.id).collect::<BTreeSet<_>>().len(), history.len());
}

async fn a_thousand_ids_at_once_are_one_point(fixture: &Fixture) {
    let views = fixture.views(WEEK);
    views.count(ids(1_000)).await.unwrap();
    assert_eq!(counts(&views.points(ALL).await.unwrap()), [1_000]);
}

async fn what_is_older_than_the_retention_is_forgotten(fixture: &Fixture) {
    let views = fixture.views(WEEK);
    views.count(ids(1)).await.unwrap();
    fixture.fill(&[(1_000, 5), (2_000, 9)]).await;
    views.count(ids(1)).await.unwrap();
    let (history, total) = (views.points(ALL).await.unwrap(), views.total().await.unwrap());
    assert!(history.iter().all(|point| point.time > Utc::now() - WEEK));
    assert_eq!(history[0].user_count, total);
    assert_eq!(views.oldest().await.unwrap().as_ref(), history.last());
}

async fn points_of_a_clock_that_was_ahead_do_not_hide_later_ones(fixture: &Fixture) {
    const HOUR: i64 = 60 * 60;
    let now = Utc::now().timestamp();
    let clock = Arc::new(AtomicI64::new(now + HOUR));
    let seen = clock.clone();
    let views = fixture.views_by(move || seen.load(Ordering::Relaxed));
    views.count(ids(1)).await.unwrap();
    // Corrected, then one minute, one hour and two hours later.
    for (passed, count) in [(0, 2), (60, 3), (HOUR, 4), (2 * HOUR, 5)] {
        clock.store(now + passed, Ordering::Relaxed);
        views.count(ids(1)).await.unwrap();
        for to in [now + passed + 1, now + passed + HOUR] {
            let until = views.points(Window { to: Some(at(to)), ..ALL }).await.unwrap();
            assert_eq!(until[0].user_count, count, "{passed} {to} {until:?}");
            assert!(until.iter().all(|point| point.time < at(to)), "{passed} {to} {until:?}");
            assert!(until.is_sorted_by(|a, b| a.time >= b.time && a.user_count > b.user_count));
        }
        let from = views.points(Window { from: Some(at(now + passed - 60)), ..ALL }).await.unwrap();
        assert_eq!(from[0].user_count, count, "{passed} {from:?}");
    }
    assert_eq!(counts(&views.points(ALL).await.unwrap()), [5, 4, 3, 2, 1]);
    let since = Window { from: Some(at(now + HOUR + 1)), ..ALL };
    assert_eq!(counts(&views.points(since).await.unwrap()), [5]);
}

async fn a_clock_that_is_set_back_stops_nothing(fixture: &Fixture) {
    let now = Utc::now().timestamp();
    let clock = Arc::new(AtomicI64::new(now));
    let seen = clock.clone();
    let views = fixture.views_by(move || seen.load(Ordering::Relaxed));
    for time in [now, now - 60 * 60, now - 25 * 60 * 60, now + 1] {
        clock.store(time, Ordering::Relaxed);
        views.count(ids(1)).await.unwrap();
    }
    let history = views.points(ALL).await.unwrap();
    assert_eq!((counts(&history), views.total().await.unwrap()), (vec![4, 3, 2, 1], 4));
    assert!(history.is_sorted_by(|a, b| a.time >= b.time));
}

/// Several clients call each method repeatedly and concurrently, and cancel it after a timeout.
async fn calls_that_are_given_up_leave_nothing_behind(fixture: &Fixture) {
    for patience in [0, 1, 5, 20, 100].map(Duration::from_millis) {
        let givers_up = (0..4).map(|_| {
            let views = fixture.views(WEEK);
            async move {
                for _ in 0..10 {
                    let _ = timeout(patience, views.ready()).await;
                    let _ = timeout(patience, views.count(ids(3))).await;
                    let _ = timeout(patience, views.total()).await;
                    let _ = timeout(patience, views.points(ALL)).await;
                    let _ = timeout(patience, views.oldest()).await;
                }
            }
        });
        futures_util::future::join_all(givers_up).await;
    }
    let views = fixture.views(WEEK);
    timeout(Duration::from_secs(10), views.ready()).await.unwrap().unwrap();
    let ids = ids(5);
    views.count(ids.clone()).await.unwrap();
    let total = views.total().await.unwrap();
    views.count(ids).await.unwrap();
    let history = views.points(ALL).await.unwrap();
    // Cancelled calls continue in the background and may still count.
    assert!(total >= 5 && history[0].user_count >= total);
    assert!(counts(&history).is_sorted_by(|a, b| a > b));
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

/// The reference: evaluates the window with a full scan of the points.
fn naive(points: &[(i64, u64)], w: Window) -> Vec<u64> {
    let mut inside: Vec<_> = points
        .iter()
        .rev()
        .filter(|(t, n)| {
            w.from.is_none_or(|from| at(*t) >= from)
                && w.to.is_none_or(|to| at(*t) < to)
                && w.above.is_none_or(|above| *n > above)
                && w.below.is_none_or(|below| *n < below)
        })
        .collect();
    if let Some(step) = w.step_s {
        inside.dedup_by_key(|(t, _)| t.div_euclid(step));
    }
    inside.iter().map(|(_, n)| *n).take(w.limit).collect()
}

/// A few minutes before midnight, so that the points that follow span two days.
const EVENING: i64 = 24 * 60 * 60 - 450;

fn points() -> impl Strategy<Value = Vec<(i64, u64)>> {
    let grow = |gaps: Vec<(i64, u64)>| {
        let mut now = (EVENING, 0);
        gaps.into_iter()
            .map(|(dt, dn)| {
                now = (now.0 + dt, now.1 + dn);
                now
            })
            .collect()
    };
    prop::collection::vec((0_i64..40, 1_u64..5), 0..60).prop_map(grow)
}

fn windows(most: usize) -> impl Strategy<Value = Vec<Window>> {
    let time = || prop::option::of((0_i64..1_200).prop_map(|seconds| at(EVENING + seconds)));
    let count = || prop::option::of(0_u64..150);
    let step = prop::option::of(prop_oneof![8 => 1_i64..120, 1 => Just(86_400), 1 => Just(604_800)]);
    let window = (time(), time(), count(), count(), step, 1_usize..50)
        .prop_map(|(from, to, above, below, step_s, limit)| Window { from, to, above, below, step_s, limit });
    prop::collection::vec(window, most)
}

async fn every_window_answers_what_a_scan_would(
    fixture: &Fixture,
    points: Vec<(i64, u64)>,
    windows: Vec<Window>,
) {
    let views = fixture.views(EVER);
    views.ready().await.unwrap();
    fixture.fill(&points).await;
    for window in windows {
        let is = counts(&views.points(window).await.unwrap());
        assert_eq!(is, naive(&points, window), "{window:?} of {points:?}");
    }
    let oldest = views.oldest().await.unwrap().map(|p| (p.time.timestamp(), p.user_count));
    assert_eq!(oldest, points.first().copied());
}

/// Runs the suite against one implementation, with `$histories` random histories and `$windows` windows of each.
macro_rules! suite {
    ($name:ident, $fixture:expr, $histories:expr, $windows:expr) => {
        suite!($name, $fixture, $histories, $windows, [
            nothing_counted_is_an_empty_history,
            an_id_counts_once_however_often_it_comes,
            many_counters_at_once_agree_on_one_growing_history,
            a_thousand_ids_at_once_are_one_point,
            what_is_older_than_the_retention_is_forgotten,
            points_of_a_clock_that_was_ahead_do_not_hide_later_ones,
            a_clock_that_is_set_back_stops_nothing,
            calls_that_are_given_up_leave_nothing_behind,
        ]);
    };
    ($name:ident, $fixture:expr, $histories:expr, $windows:expr, [$($case:ident),* $(,)?]) => {
        mod $name {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    let fixture = $fixture.await;
                    super::$case(&fixture).await;
                    fixture.clean().await;
                }
            )*

            proptest! {
                #![proptest_config(ProptestConfig { cases: $histories, ..ProptestConfig::default() })]

                #[test]
                fn every_window_answers_what_a_scan_would(points in points(), windows in windows($windows)) {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let fixture = $fixture.await;
                        super::every_window_answers_what_a_scan_would(&fixture, points, windows).await;
                        fixture.clean().await;
                    });
                }
            }
        }
    };
}

suite!(in_sqlite, Fixture::sqlite(), 48, 8);
suite!(in_memory, Fixture::memory(), 48, 8);

#[cfg(feature = "services")]
suite!(in_cassandra, Fixture::cassandra(), 4, 60);

#[tokio::test]
async fn the_newest_point_of_the_embedded_views_is_never_forgotten() {
    let fixture = Fixture::sqlite().await;
    let views = fixture.views(WEEK);
    views.ready().await.unwrap();
    fixture.fill(&[(1_000, 5), (2_000, 9)]).await;
    assert_eq!(views.total().await.unwrap(), 9);
    views.count(ids(1)).await.unwrap();
    assert_eq!(counts(&views.points(ALL).await.unwrap()), [10]);
}
