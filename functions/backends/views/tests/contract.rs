//! What every implementation of `Views` promises, run against each of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use backend_views::{SqliteViews, Views};
use chrono::{DateTime, Utc};
use proptest::prelude::*;
use shared::history::{Point, Window};
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;

const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const ALL: Window = Window { from: None, to: None, above: None, below: None, step_s: None, limit: 100_000 };

fn sqlite(dir: &TempDir) -> Arc<dyn Views> {
    Arc::new(SqliteViews::new(dir.path().join("views.db"), WEEK))
}

fn ids(n: usize) -> Vec<Uuid> {
    (0..n).map(|_| Uuid::new_v4()).collect()
}

fn counts(points: &[Point]) -> Vec<u64> {
    points.iter().map(|p| p.user_count).collect()
}

#[tokio::test]
async fn nothing_counted_is_an_empty_history() {
    let dir = tempfile::tempdir().unwrap();
    let views = sqlite(&dir);
    assert_eq!(views.total().await.unwrap(), 0);
    assert!(views.history(ALL).await.unwrap().is_empty());
    assert_eq!(views.oldest().await.unwrap(), None);
    views.ready().await.unwrap();
}

#[tokio::test]
async fn an_id_counts_once_however_often_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let (views, ids) = (sqlite(&dir), ids(10));
    views.count(vec![ids[0], ids[0], ids[1]]).await.unwrap();
    views.count(vec![ids[0]]).await.unwrap();
    views.count(ids.clone()).await.unwrap();
    sqlite(&dir).count(ids.clone()).await.unwrap();
    assert_eq!(views.total().await.unwrap(), 10);
    assert_eq!(counts(&views.history(ALL).await.unwrap()), [10, 2]);
    assert_eq!(views.oldest().await.unwrap().unwrap().user_count, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_counters_at_once_agree_on_one_growing_history() {
    let dir = tempfile::tempdir().unwrap();
    let ids = Arc::new(ids(300));
    let counters: Vec<_> = (0..6)
        .map(|n| {
            let (views, ids) = (sqlite(&dir), ids.clone());
            tokio::spawn(async move {
                for start in 0..30 {
                    let chunk = ids.iter().cycle().skip((start * 7 + n * 50) % 300).take(20).copied();
                    views.count(chunk.collect()).await.unwrap();
                }
                views.count(ids.to_vec()).await.unwrap();
            })
        })
        .collect();
    for counter in counters {
        counter.await.unwrap();
    }
    let history = sqlite(&dir).history(ALL).await.unwrap();
    assert_eq!(history[0].user_count, 300);
    assert!(counts(&history).is_sorted_by(|a, b| a > b) && history.is_sorted_by(|a, b| a.time >= b.time));
    assert_eq!(history.iter().map(|p| p.id).collect::<BTreeSet<_>>().len(), history.len());
}

#[tokio::test]
async fn what_is_older_than_the_retention_is_forgotten_but_never_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let views = sqlite(&dir);
    views.count(ids(1)).await.unwrap();
    fill(&dir, &[(1_000, 5), (2_000, 9)]).await;
    assert_eq!(views.total().await.unwrap(), 9);
    views.count(ids(1)).await.unwrap();
    let history = views.history(ALL).await.unwrap();
    assert_eq!(counts(&history), [10]);
}

/// Replaces the history by points at these seconds since 1970.
async fn fill(dir: &TempDir, points: &[(i64, u64)]) {
    let url = format!("sqlite:{}", dir.path().join("views.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("DELETE FROM history").execute(&mut database).await.unwrap();
    for (time, count) in points {
        sqlx::query("INSERT INTO history (user_count, id, time) VALUES (?, randomblob(16), ?)")
            .bind(i64::try_from(*count).unwrap())
            .bind(time)
            .execute(&mut database)
            .await
            .unwrap();
    }
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

/// The same window over the same points, the slow way.
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_window_answers_what_a_scan_would(
        gaps in prop::collection::vec((0_i64..40, 1_u64..5), 0..40),
        windows in prop::collection::vec(
            (prop::option::of(0_i64..900), prop::option::of(0_i64..900), prop::option::of(0_u64..100),
             prop::option::of(0_u64..100), prop::option::of(1_i64..120), 1_usize..50), 8),
    ) {
        let mut now = (0, 0);
        let points: Vec<_> = gaps.into_iter().map(|(dt, dn)| { now = (now.0 + dt, now.1 + dn); now }).collect();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let views = sqlite(&dir);
            views.ready().await.unwrap();
            fill(&dir, &points).await;
            for (from, to, above, below, step_s, limit) in windows {
                let window = Window { from: from.map(at), to: to.map(at), above, below, step_s, limit };
                let is = counts(&views.history(window).await.unwrap());
                prop_assert_eq!(is, naive(&points, window), "{:?} of {:?}", window, points);
            }
            Ok(())
        })?;
    }
}
