//! The wall clock is set back and forth while the system runs, by Debian's `faketime`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use chrono::{DateTime, Duration, Utc};
use uuid::Uuid;

use crate::{
    app::{App, Options},
    not_run::{Lacks, not_run},
    stores::Stores,
};

/// The library that fakes the clock of programs with threads.
fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let folders = folders.chain([PathBuf::from("/usr/lib"), PathBuf::from("/usr/local/lib")]);
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
}

/// A clock that a test sets, for all processes of a system.
struct Clock {
    folder: tempfile::TempDir,
    library: PathBuf,
}

impl Clock {
    /// A clock that shows the real time, or `None` if the library is not installed. With `CI=true` a missing library is
    /// a failure.
    fn new() -> Option<Self> {
        let library = library();
        if library.is_none() {
            not_run(Lacks::Debian, "Debian's package faketime is not installed");
        }
        let clock = Self { folder: tempfile::tempdir().unwrap(), library: library? };
        clock.set(0);
        Some(clock)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("clock")
    }

    /// Sets the wall clock to the real time plus `seconds`. The monotonic clock is not affected.
    fn set(&self, seconds: i64) {
        let new: &Path = &self.folder.path().join("new");
        fs::write(new, format!("{seconds:+}\n")).unwrap();
        // Renamed, so that no process reads a half-written file.
        fs::rename(new, self.file()).unwrap();
    }

    fn options(&self) -> Options {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        Options {
            variables: vec![
                ("LD_PRELOAD", text(&self.library)),
                ("FAKETIME_TIMESTAMP_FILE", text(&self.file())),
                ("FAKETIME_NO_CACHE", "1".to_owned()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
                ("DONT_FAKE_MONOTONIC", "1".to_owned()),
                ("NO_FAKE_STAT", "1".to_owned()),
            ],
            ..Options::default()
        }
    }

    /// A system on this clock whose batch layer is called every other second.
    async fn start(&self) -> App {
        App::start_as(Stores::Embedded, self.options(), |path, manifest| {
            if path != "eventing/minute-to-batch.yaml" {
                return manifest;
            }
            assert!(manifest.contains("\"* * * * *\""), "{manifest}");
            manifest.replace("\"* * * * *\"", "\"*/2 * * * * *\"")
        })
        .await
    }
}

/// Waits until the schedule has called the batch layer two more times.
async fn until_two_ticks(app: &mut App) {
    let requests = async |app: &mut App| app.function("batch").await["requests"].as_u64().unwrap();
    let before = requests(app).await;
    app.eventually("two more ticks", async |app| requests(app).await >= before + 2).await;
}

#[tokio::test]
async fn ticks_go_on_when_the_clock_is_set_back_or_forth() {
    let Some(clock) = Clock::new() else { return };
    let mut app = clock.start().await;
    for (users, seconds) in [0, -3_600, 7_200, -86_400, 0].into_iter().enumerate() {
        clock.set(seconds);
        until_two_ticks(&mut app).await;
        let id = Uuid::new_v4();
        app.post_user(id, &format!("at {seconds}")).await;
        app.settle().await;
        assert_eq!(app.user_count().await, users as u64 + 1, "at {seconds} s");
        assert!(app.stores.stored(app.data.path()).await.contains(&id), "at {seconds} s");
    }
    let points = app.analytics().await["userCount"].as_array().unwrap().clone();
    let counts: Vec<_> = points.iter().map(|point| point["userCount"].as_u64().unwrap()).collect();
    let times: Vec<DateTime<Utc>> =
        points.iter().map(|point| point["time"].as_str().unwrap().parse().unwrap()).collect();
    assert!(counts.is_sorted_by(|a, b| a < b) && times.is_sorted(), "{points:?}");
    assert!(app.dead_letters().is_empty());
}

#[tokio::test]
async fn points_of_a_wrong_future_hide_no_later_ones() {
    let Some(clock) = Clock::new() else { return };
    clock.set(7_200);
    let mut app = clock.start().await;
    app.post_user(Uuid::new_v4(), "in two hours").await;
    app.settle().await;
    clock.set(0);
    app.post_user(Uuid::new_v4(), "now").await;
    app.settle().await;
    let to = (Utc::now() + Duration::minutes(1)).to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let until_now = app.get(&format!("/service-analytics/analytics?to={to}")).await;
    let newest = until_now["userCount"].as_array().unwrap().last().map(|point| point["userCount"].clone());
    assert_eq!(newest, Some(2.into()), "{until_now}");
    assert_eq!(app.user_count().await, 2);
}
