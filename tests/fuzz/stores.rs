//! The same calls of SQLite and of the models in memory have the same answers. The calls are a text, one in each line.

use std::{
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use backend_master::{Master, SqliteMaster};
use backend_views::{SqliteViews, Views};
use chrono::DateTime;
use domain::{History, LONGEST_NAME, Point, User, Window};
use memory::{Clock, Defects, MemoryMaster, MemoryViews};
use rand::{RngExt, rngs::StdRng};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    engine::{corpus, fuzz_with},
    runtime,
};

/// When the clock starts, milliseconds since 1970 UTC.
const START: i64 = 1_700_000_000_000;
/// How long the views keep their history, seconds.
const RETENTION: Duration = Duration::from_secs(1_000);
/// Most calls of one input, so that repeated lines cost no time.
const CALLS: usize = 150;
/// Pieces of names.
const PIECES: [&str; 12] =
    ["a", "Zoë", " ", "日本", "😀", "e\u{301}", "\u{200d}", "\u{fdd0}", "\"", "\\", "'", "\u{2028}"];

/// A clock that the calls set.
#[derive(Clone)]
pub struct Time(Arc<AtomicI64>);

impl Time {
    pub fn new() -> Self {
        Self(Arc::new(AtomicI64::new(START)))
    }

    pub fn clock(&self) -> Clock {
        let time = self.0.clone();
        Arc::new(move || time.load(Relaxed))
    }

    /// Sets it forward or back; never before 2001.
    pub fn advance(&self, ms: i64) {
        let then = self.0.load(Relaxed).saturating_add(ms);
        self.0.store(then.clamp(1_000_000_000_000, 4_000_000_000_000), Relaxed);
    }
}

pub fn id(n: u64) -> Uuid {
    // Ids in no order.
    Uuid::from_u128(u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

fn number(text: &str) -> Option<i64> {
    text.parse().ok()
}

/// `points FROM TO ABOVE BELOW STEP LIMIT`, times in milliseconds after the start, `-` where there is no bound.
fn window(words: &[&str]) -> Window {
    let word = |n: usize| words.get(n).and_then(|word| number(word));
    let time = |n| word(n).and_then(|ms| DateTime::from_timestamp_millis(START.checked_add(ms)?));
    let count = |n| word(n).and_then(|count| u64::try_from(count).ok());
    Window {
        from: time(0),
        to: time(1),
        above: count(2),
        below: count(3),
        step_s: word(4).filter(|step| (1..=1_000_000_000).contains(step)),
        limit: word(5).and_then(|limit| usize::try_from(limit).ok()).unwrap_or(1_000).clamp(1, 1_000),
    }
}

/// Time and count of each point; the ids of the views' points are random.
fn shown(points: &[Point]) -> Vec<(i64, u64)> {
    points.iter().map(|point| (point.time.timestamp(), point.user_count)).collect()
}

async fn same_history(sqlite: &dyn History, model: &dyn History, call: &str, words: &[&str]) -> String {
    if words[0] == "oldest" {
        let (is, should) = (sqlite.oldest().await.unwrap(), model.oldest().await.unwrap());
        assert_eq!(shown(is.as_slice()), shown(should.as_slice()), "{call}");
        return "o".to_owned();
    }
    let window = window(&words[1..]);
    let (is, should) = (sqlite.points(window).await.unwrap(), model.points(window).await.unwrap());
    assert_eq!(shown(&is), shown(&should), "{call}: {window:?}");
    format!("p{}", "x".repeat(is.len().min(3)))
}

/// In memory where there is such a place, since no power is cut here.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn calls(input: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(input).lines().take(CALLS).map(str::to_owned).collect()
}

async fn check_master(input: &[u8], defects: Defects) -> String {
    let (folder, time) = (folder(), Time::new());
    let clock = time.clock();
    let sqlite = SqliteMaster::with_clock(folder.path().join("master.db"), move || clock());
    let model = MemoryMaster::new(time.clock()).with_defects(defects);
    let (sqlite, model): (&dyn Master, &dyn Master) = (&sqlite, &model);
    let (mut users, mut outcome) = (Vec::new(), String::new());
    for call in calls(input) {
        let words: Vec<_> = call.split(' ').collect();
        match words[0] {
            "user" => {
                let parts: Vec<_> = call.splitn(3, ' ').collect();
                let n = parts.get(1).and_then(|n| number(n)).unwrap_or(0).unsigned_abs();
                let name: String =
                    parts.get(2).copied().unwrap_or_default().chars().take(LONGEST_NAME).collect();
                // No other users get so far.
                let user = User { id: id(n % 40), name };
                users.extend(User::from_json(&user.to_json()));
            }
            "store" => {
                let is = sqlite.store(users.clone()).await.unwrap();
                assert_eq!(is, model.store(std::mem::take(&mut users)).await.unwrap(), "{call}");
                outcome.push('s');
            }
            "tick" => {
                let full = words.get(1) == Some(&"full");
                let is = sqlite.tick(full).await.unwrap();
                assert_eq!(is, model.tick(full).await.unwrap(), "{call}");
                let _ = write!(outcome, "t{}", "x".repeat(usize::from(is.new_users > 0)));
            }
            "longest" => {
                assert_eq!(sqlite.longest().await.unwrap(), model.longest().await.unwrap(), "{call}");
                outcome.push('l');
            }
            // The model lets time go back, as MySQL does; SQLite does not.
            "clock" => time.advance(words.get(1).and_then(|ms| number(ms)).unwrap_or(0).max(0)),
            "points" | "oldest" => outcome += &same_history(sqlite, model, &call, &words).await,
            _ => {}
        }
    }
    let (is, should) = (sqlite.tick(true).await.unwrap(), model.tick(true).await.unwrap());
    assert_eq!(is, should, "all is recomputed");
    let all = Window { limit: 1_000, ..Window::default() };
    assert_eq!(sqlite.points(all).await.unwrap(), model.points(all).await.unwrap(), "ids as well");
    outcome
}

async fn check_views(input: &[u8]) -> String {
    let (folder, time) = (folder(), Time::new());
    let clock = time.clock();
    let seconds = move || clock().div_euclid(1_000);
    let sqlite = SqliteViews::with_clock(folder.path().join("views.db"), RETENTION, seconds);
    let model = MemoryViews::new(time.clock(), RETENTION);
    let (sqlite, model): (&dyn Views, &dyn Views) = (&sqlite, &model);
    let mut outcome = String::new();
    for call in calls(input) {
        let words: Vec<_> = call.split(' ').collect();
        match words[0] {
            "count" => {
                let ids =
                    words[1..].iter().take(100).filter_map(|n| Some(id(number(n)?.unsigned_abs() % 200)));
                let ids: Vec<_> = ids.collect();
                sqlite.count(ids.clone()).await.unwrap();
                model.count(ids).await.unwrap();
                outcome.push('c');
            }
            "total" => {
                assert_eq!(sqlite.total().await.unwrap(), model.total().await.unwrap(), "{call}");
                outcome.push('t');
            }
            "clock" => time.advance(words.get(1).and_then(|ms| number(ms)).unwrap_or(0)),
            "points" | "oldest" => outcome += &same_history(sqlite, model, &call, &words).await,
            _ => {}
        }
    }
    assert_eq!(sqlite.total().await.unwrap(), model.total().await.unwrap());
    same_history(sqlite, model, "points", &["points"]).await;
    outcome
}

fn bound(random: &mut StdRng, most: i64) -> String {
    match random.random_bool(0.6) {
        true => "-".to_owned(),
        false => random.random_range(0..=most).to_string(),
    }
}

fn points(random: &mut StdRng) -> String {
    let times = [bound(random, 600_000), bound(random, 600_000)].join(" ");
    let counts = [bound(random, 40), bound(random, 40)].join(" ");
    let step = ["-", "1", "7", "60", "3600"][random.random_range(0..5)];
    format!("points {times} {counts} {step} {}", random.random_range(1..20))
}

fn master_calls(random: &mut StdRng) -> Vec<u8> {
    let mut text = String::new();
    for _ in 0..random.random_range(1..40) {
        text += &match random.random_range(0..10) {
            0..=3 => {
                let most = [1, 3, 30][random.random_range(0..3)];
                let pieces = (0..random.random_range(1..=most)).map(|_| PIECES[random.random_range(0..12)]);
                let name: String = pieces.collect();
                format!("user {} {name}", random.random_range(0..20))
            }
            4 | 5 => "store".to_owned(),
            6 => ["tick", "tick", "tick full"][random.random_range(0..3)].to_owned(),
            7 => ["longest", "oldest"][random.random_range(0..2)].to_owned(),
            8 => format!("clock {}", random.random_range(0..100_000)),
            _ => points(random),
        };
        text.push('\n');
    }
    text.into_bytes()
}

fn views_calls(random: &mut StdRng) -> Vec<u8> {
    let mut text = String::new();
    for _ in 0..random.random_range(1..40) {
        text += &match random.random_range(0..8) {
            0..=3 => {
                let count = random.random_range(0..6);
                let ids = (0..count).map(|_| format!(" {}", random.random_range(0..60)));
                format!("count{}", ids.collect::<String>())
            }
            4 => ["total", "oldest"][random.random_range(0..2)].to_owned(),
            5 | 6 => format!("clock {}", random.random_range(-30_000..200_000)),
            _ => points(random),
        };
        text.push('\n');
    }
    text.into_bytes()
}

#[test]
fn sqlite_keeps_users_as_the_model_does() {
    let runtime = runtime();
    fuzz_with("master", Vec::new(), Some(&master_calls), |input| {
        runtime.block_on(check_master(input, Defects::default()))
    });
}

/// The comparison is good for something: a model with another rule is told apart by the corpus alone.
#[test]
fn a_model_that_ranks_names_by_bytes_is_told_apart() {
    let runtime = runtime();
    let defects = Defects { longest_by_bytes: true, ..Defects::default() };
    let is_same = |input: &Vec<u8>| {
        let check = || runtime.block_on(check_master(input, defects));
        catch_unwind(AssertUnwindSafe(check)).is_ok()
    };
    assert!(!corpus("master").iter().all(is_same));
}

#[test]
fn sqlite_counts_as_the_model_does() {
    let runtime = runtime();
    fuzz_with("views", Vec::new(), Some(&views_calls), |input| runtime.block_on(check_views(input)));
}
