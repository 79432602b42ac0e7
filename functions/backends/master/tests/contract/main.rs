//! What every implementation of `Master` promises, run against each of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use backend_master::{Master, Stored};
use chrono::DateTime;
use domain::{Point, User, Window};
use proptest::prelude::*;
use uuid::Uuid;

/// Storage of each implementation during a test.
mod fixture;

/// A proxy that simulates a slow network.
#[cfg(feature = "services")]
#[allow(dead_code, reason = "the system tests use all of it")]
#[path = "../../../../../tests/proxy.rs"]
mod proxy;

use fixture::Fixture;

const ALL: Window = Window { from: None, to: None, above: None, below: None, step_s: None, limit: 100_000 };

fn user(id: u128, name: &str) -> User {
    User { id: Uuid::from_u128(id), name: name.to_owned() }
}

fn conflict(kept: &str) -> Stored {
    Stored::Conflict { kept: kept.to_owned() }
}

async fn minutes(master: &dyn Master) -> Vec<(i64, u64)> {
    let points = master.points(ALL).await.unwrap();
    points.iter().rev().map(|p| (p.time.timestamp(), p.user_count)).collect()
}

async fn the_first_name_of_an_id_stays_for_ever(fixture: &Fixture) {
    let master = fixture.master(&Arc::default());
    let first = master.store(vec![user(1, "a"), user(2, "b"), user(1, "a"), user(2, "c")]).await.unwrap();
    assert_eq!(first, [Stored::New, Stored::New, Stored::Duplicate, conflict("b")]);
    let again = master.store(vec![user(2, "c"), user(3, "é\u{301} 😀\"\\"), user(2, "b")]).await.unwrap();
    assert_eq!(again, [conflict("b"), Stored::New, Stored::Duplicate]);
    let kept = master.store(vec![user(3, "x")]).await.unwrap();
    assert_eq!(kept, [conflict("é\u{301} 😀\"\\")]);
    assert_eq!(master.tick(false).await.unwrap().users, 3);
}

async fn before_the_first_user_there_is_no_longest_name(fixture: &Fixture) {
    let master = fixture.master(&Arc::default());
    for full in [false, true] {
        let tick = master.tick(full).await.unwrap();
        assert_eq!((tick.new_users, tick.users, tick.longest_name_user), (0, 0, None));
    }
    assert_eq!(master.longest().await.unwrap(), None);
    assert!(minutes(&*master).await.is_empty());
}

async fn minutes_count_who_came_until_then(fixture: &Fixture) {
    let clock = Arc::new(AtomicI64::new(30_500));
    let master = fixture.master(&clock);
    master.store(vec![user(1, "a")]).await.unwrap();
    clock.store(59_999, Ordering::Relaxed);
    master.store(vec![user(2, "b")]).await.unwrap();
    master.tick(false).await.unwrap();
    assert_eq!(minutes(&*master).await, [(59, 2)]);
    clock.store(185_000, Ordering::Relaxed);
    master.store(vec![user(3, "c")]).await.unwrap();
    clock.store(185_900, Ordering::Relaxed);
    master.store(vec![user(4, "d")]).await.unwrap();
    master.tick(false).await.unwrap();
    assert_eq!(minutes(&*master).await, [(59, 2), (185, 4)]);
    let points = master.points(ALL).await.unwrap();
    let expected = [Point::minute(3, 185, 4), Point::minute(0, 59, 2)];
    assert_eq!(points, expected.map(Result::unwrap));
    master.tick(true).await.unwrap();
    assert_eq!(master.points(ALL).await.unwrap(), points);
}

async fn a_wrong_clock_moves_points_and_never_counts(fixture: &Fixture) {
    const HOUR: i64 = 3_600_000;
    let clock = Arc::new(AtomicI64::new(0));
    let master = fixture.master(&clock);
    // Correct, an hour ahead, corrected, before 1970, correct again.
    let times = [2 * HOUR, 3 * HOUR, 2 * HOUR + 60_000, -5_000, i64::MIN, 4 * HOUR];
    for (n, time) in times.into_iter().enumerate() {
        clock.store(time, Ordering::Relaxed);
        master.store(vec![user(n as u128, "a")]).await.unwrap();
        let tick = master.tick(false).await.unwrap();
        assert_eq!((tick.new_users, tick.users), (1, n as u64 + 1), "{time}");
    }
    let history = minutes(&*master).await;
    assert_eq!(history.last(), Some(&(4 * HOUR / 1_000, times.len() as u64)));
    assert!(history.is_sorted_by(|earlier, later| earlier.0 < later.0 && earlier.1 < later.1), "{history:?}");
    assert_eq!(master.tick(true).await.unwrap().users, times.len() as u64);
    assert_eq!(minutes(&*master).await, history);
}

async fn users_of_a_clock_that_was_ahead_are_part_of_what_is_asked_until_now(fixture: &Fixture) {
    const NOW: i64 = 100_000_000;
    let clock = Arc::new(AtomicI64::new(NOW + 3_600_000));
    let master = fixture.master(&clock);
    master.store(vec![user(0, "a"), user(1, "a")]).await.unwrap();
    master.tick(false).await.unwrap();
    clock.store(NOW, Ordering::Relaxed);
    master.store(vec![user(2, "a")]).await.unwrap();
    for full in [false, true] {
        master.tick(full).await.unwrap();
        for to in [None, Some(NOW / 1_000), Some(NOW / 1_000 + 1)] {
            let to = to.and_then(|to| DateTime::from_timestamp(to, 0));
            let points = master.points(Window { to, ..ALL }).await.unwrap();
            assert_eq!(points.first().map(|point| point.user_count), Some(3), "to {to:?}: {points:?}");
            assert!(points.iter().all(|point| point.time.timestamp_millis() <= NOW), "{points:?}");
        }
        let earlier = Window { to: DateTime::from_timestamp(NOW / 1_000 - 60, 0), ..ALL };
        assert!(master.points(earlier).await.unwrap().is_empty());
    }
}

async fn stores_and_ticks_at_once_lose_nobody(fixture: &Fixture) {
    let clock = Arc::new(AtomicI64::new(1_000));
    let stores = (0..4_u128).map(|n| {
        let master = fixture.master(&clock);
        tokio::spawn(async move {
            for turn in 0..25 {
                let users = (0..8).map(|k| user(n * 100 + turn * 4 + k, "same")).collect();
                master.store(users).await.unwrap();
            }
        })
    });
    let ticks = (0..2).map(|_| {
        let (master, clock) = (fixture.master(&clock), clock.clone());
        tokio::spawn(async move {
            for _ in 0..25 {
                clock.fetch_add(20_000, Ordering::Relaxed);
                master.tick(false).await.unwrap();
            }
        })
    });
    for task in stores.chain(ticks).collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let master = fixture.master(&clock);
    let (incremental, history) = (master.tick(false).await.unwrap(), minutes(&*master).await);
    let full = master.tick(true).await.unwrap();
    assert_eq!((incremental.users, incremental.longest_name_user), (404, full.longest_name_user));
    assert_eq!(minutes(&*master).await, history);
}

async fn a_write_whose_caller_went_away_still_ends(fixture: &Fixture) {
    let master = fixture.master(&Arc::default());
    master.ready().await.unwrap();
    for n in 0..50 {
        let store = master.store(vec![user(n, "a")]);
        let _ = tokio::time::timeout(Duration::from_micros(u64::try_from(n).unwrap() * 20), store).await;
    }
    // Cancelled calls have ended, or they do not block other callers.
    let all = (0..50).map(|n| user(n, "a")).collect();
    let outcomes = master.store(all).await.unwrap();
    assert!(outcomes.iter().all(|outcome| !matches!(outcome, Stored::Conflict { .. })));
    assert_eq!(master.tick(false).await.unwrap().users, 50);
    assert_eq!(master.tick(true).await.unwrap().users, 50);
}

/// A step in the history of a master dataset.
#[derive(Debug, Clone)]
enum Step {
    Store(Vec<(u8, String)>),
    Tick,
    Later(i64),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = prop_oneof![
        "[a-z]{1,6}",
        "[а-яё]{1,6}",
        "[一-龠]{1,6}",
        "[😀-😏]{1,6}",
        "(e\u{301}){1,3}",
        "[\u{5d0}-\u{5ea} ]{1,6}",
        Just("\"\\'".to_owned()),
    ];
    let step = prop_oneof![
        4 => prop::collection::vec((0_u8..40, name), 1..6).prop_map(Step::Store),
        2 => Just(Step::Tick),
        2 => (0_i64..90_000).prop_map(Step::Later),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..40)
}

/// A reference model: the master dataset in memory, with views computed by the simplest algorithm.
#[derive(Default)]
struct Model {
    users: Vec<(u8, String, i64)>,
}

impl Model {
    fn store(&mut self, id: u8, name: &str, now: i64) -> Stored {
        match self.users.iter().find(|(i, _, _)| *i == id) {
            None => {
                self.users.push((id, name.to_owned(), now));
                Stored::New
            }
            Some((_, kept, _)) if kept == name => Stored::Duplicate,
            Some((_, kept, _)) => conflict(kept),
        }
    }

    fn longest(&self) -> Option<User> {
        let length = |name: &str| name.chars().count();
        let most = self.users.iter().map(|(_, name, _)| length(name)).max()?;
        let (id, name, _) = self.users.iter().find(|(_, name, _)| length(name) == most)?;
        Some(user(u128::from(*id), name))
    }

    fn minutes(&self) -> Vec<(i64, u64)> {
        let mut minutes: Vec<(i64, u64)> = Vec::new();
        for (n, (_, _, at)) in self.users.iter().enumerate() {
            if minutes.last().is_some_and(|(time, _)| time / 60 == at / 60_000) {
                minutes.pop();
            }
            minutes.push((at / 1_000, n as u64 + 1));
        }
        minutes
    }
}

/// After any sequence of steps, incremental ticks, full recomputation and the reference model give the same result.
async fn incremental_full_and_the_plainest_way_agree(fixture: &Fixture, steps: Vec<Step>) {
    let clock = Arc::new(AtomicI64::new(1_000_000));
    let (mut master, mut model) = (fixture.master(&clock), Model::default());
    for step in steps {
        match step {
            Step::Store(users) => {
                let now = clock.load(Ordering::Relaxed);
                let should: Vec<_> = users.iter().map(|(id, name)| model.store(*id, name, now)).collect();
                let users = users.iter().map(|(id, name)| user(u128::from(*id), name)).collect();
                assert_eq!(master.store(users).await.unwrap(), should);
            }
            Step::Tick => {
                let tick = master.tick(false).await.unwrap();
                assert_eq!(tick.users, model.users.len() as u64);
                assert_eq!(tick.longest_name_user, model.longest());
                assert_eq!(master.longest().await.unwrap(), tick.longest_name_user);
                assert_eq!(minutes(&*master).await, model.minutes());
            }
            Step::Later(ms) => {
                clock.fetch_add(ms, Ordering::Relaxed);
            }
            Step::Restart => master = fixture.master(&clock),
        }
    }
    master.tick(false).await.unwrap();
    let incremental = master.points(ALL).await.unwrap();
    let full = master.tick(true).await.unwrap();
    assert_eq!(full.longest_name_user, model.longest());
    assert_eq!(master.points(ALL).await.unwrap(), incremental);
    assert_eq!(minutes(&*master).await, model.minutes());
}

/// Runs the suite against one implementation, with `$histories` random histories.
macro_rules! suite {
    ($name:ident, $fixture:expr, $histories:expr) => {
        suite!($name, $fixture, $histories, [
            the_first_name_of_an_id_stays_for_ever,
            before_the_first_user_there_is_no_longest_name,
            minutes_count_who_came_until_then,
            a_wrong_clock_moves_points_and_never_counts,
            users_of_a_clock_that_was_ahead_are_part_of_what_is_asked_until_now,
            stores_and_ticks_at_once_lose_nobody,
            a_write_whose_caller_went_away_still_ends,
            callers_that_give_up_leave_nothing_behind,
        ]);
    };
    ($name:ident, $fixture:expr, $histories:expr, [$($case:ident),* $(,)?]) => {
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
                fn incremental_full_and_the_plainest_way_agree(steps in steps()) {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let fixture = $fixture.await;
                        super::incremental_full_and_the_plainest_way_agree(&fixture, steps).await;
                        fixture.clean().await;
                    });
                }
            }
        }
    };
}

suite!(sqlite, Fixture::sqlite(), 48);
suite!(in_memory, Fixture::memory(), 48);

#[cfg(feature = "services")]
suite!(mysql, Fixture::mysql(), 12);

#[cfg(feature = "services")]
#[tokio::test]
async fn a_user_that_commits_late_is_not_missed() {
    let fixture = Fixture::mysql().await;
    let master = fixture.master(&Arc::new(AtomicI64::new(1_000)));
    master.ready().await.unwrap();
    for level in ["READ COMMITTED", "REPEATABLE READ"] {
        let (before, late) = (master.tick(false).await.unwrap().users, Uuid::new_v4());
        // A lower sequence number that commits after higher ones were processed.
        let slow = fixture.begin_storing(level, late, "the longest name of all that ever came").await;
        master.store(vec![user(Uuid::new_v4().as_u128(), "quick")]).await.unwrap();
        assert_eq!(master.tick(false).await.unwrap().users, before + 1);
        slow.commit().await.unwrap();
        let tick = master.tick(false).await.unwrap();
        assert_eq!((tick.new_users, tick.users), (1, before + 2), "{level}");
        assert_eq!(master.tick(true).await.unwrap().users, tick.users, "{level}");
    }
    fixture.clean().await;
}

#[tokio::test]
async fn a_clock_that_goes_back_reopens_no_minute_of_the_embedded_master() {
    let fixture = Fixture::sqlite().await;
    let clock = Arc::new(AtomicI64::new(185_000));
    let master = fixture.master(&clock);
    master.store(vec![user(1, "a")]).await.unwrap();
    clock.store(61_000, Ordering::Relaxed);
    master.store(vec![user(2, "b")]).await.unwrap();
    master.tick(false).await.unwrap();
    // Shown with the current time, because the minute is in the future.
    assert_eq!(minutes(&*master).await, [(61, 2)]);
    clock.store(185_000, Ordering::Relaxed);
    assert_eq!(minutes(&*master).await, [(185, 2)]);
}

/// Cancels calls at many points while the dataset is opened. Afterwards everything works.
async fn callers_that_give_up_leave_nothing_behind(fixture: &Fixture) {
    for ms in [0, 1, 5, 20, 100].repeat(20) {
        let patience = Duration::from_millis(ms);
        let master = fixture.master(&Arc::default());
        let _ = tokio::time::timeout(patience, master.ready()).await;
        let _ = tokio::time::timeout(patience, master.longest()).await;
        let _ = tokio::time::timeout(patience, master.points(ALL)).await;
        let _ = tokio::time::timeout(patience, master.store(vec![user(1, "a")])).await;
        let _ = tokio::time::timeout(patience, master.tick(false)).await;
    }
    let master = fixture.master(&Arc::default());
    master.ready().await.unwrap();
    master.store(vec![user(1, "a"), user(2, "bb")]).await.unwrap();
    assert_eq!(master.tick(false).await.unwrap().users, 2);
    assert_eq!(master.longest().await.unwrap(), Some(user(2, "bb")));
    assert_eq!(minutes(&*master).await, [(0, 2)]);
    fixture.assert_nothing_is_locked().await;
}

#[cfg(feature = "services")]
#[tokio::test(flavor = "multi_thread")]
async fn callers_with_less_patience_than_a_connection_takes_get_the_tables_created() {
    let fixture = Fixture::mysql().await;
    let (master, _proxy) = fixture.far_master(Duration::from_millis(40));
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !matches!(tokio::time::timeout(Duration::from_millis(100), master.ready()).await, Ok(Ok(()))) {
        assert!(std::time::Instant::now() < deadline, "each caller begins anew");
    }
    fixture.assert_nothing_is_locked().await;
    fixture.clean().await;
}

#[cfg(feature = "services")]
#[tokio::test]
async fn a_migration_that_was_cut_short_is_done_again() {
    let fixture = Fixture::mysql().await;
    fixture.cut_a_migration_short().await;
    let master = fixture.master(&Arc::default());
    master.ready().await.unwrap();
    assert_eq!(master.store(vec![user(1, "a")]).await.unwrap(), [Stored::New]);
    assert_eq!(master.tick(false).await.unwrap().users, 1);
    fixture.clean().await;
}

#[cfg(feature = "services")]
#[tokio::test]
async fn connections_that_the_server_killed_are_replaced() {
    let fixture = Fixture::mysql().await;
    let master = fixture.master(&Arc::default());
    for n in 0..5 {
        master.store(vec![user(n, "a")]).await.unwrap();
        fixture.kill_connections().await;
    }
    assert_eq!(master.tick(false).await.unwrap().users, 5);
    fixture.clean().await;
}

#[test]
fn a_url_without_a_database_is_refused_without_its_password() {
    for url in ["mysql://u:secret@h:3306", "mysql://u:secret@h:3306/", "mysql://u:secret@h:no/db"] {
        let error = backend_master::open(url).err().unwrap().to_string();
        assert!(error.contains("MASTER_URL") && !error.contains("secret"), "{error}");
    }
}
