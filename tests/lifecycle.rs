//! Start, stop and crash of the runtime and its functions: exit codes, child processes and data.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use uuid::Uuid;

use crate::app::{App, PROGRAM, program, runs, signal};

#[tokio::test]
async fn sigterm_ends_every_child_and_exits_with_0() {
    let mut app = App::start().await;
    app.post_user(Uuid::new_v4(), "a").await;
    app.eventually("it is counted", async |app| app.user_count().await == 1).await;
    let children = app.function_pids().await;
    assert!(!children.is_empty());
    assert_eq!(app.stop(), Some(0));
    for child in children {
        assert!(!runs(child), "the function {child} is left over");
    }
}

#[tokio::test]
async fn a_killed_runtime_leaves_no_child_and_loses_nothing() {
    let mut app = App::start().await;
    for n in 0..20 {
        app.post_user(Uuid::new_v4(), &format!("user{n}")).await;
    }
    let children = app.function_pids().await;
    app.kill_and_restart();
    app.eventually("the old children ended", async |_| !children.iter().any(|pid| runs(*pid))).await;
    app.eventually("all are counted", async |app| app.user_count().await == 20).await;
    app.settle().await;
    assert_eq!(app.user_count().await, 20);
}

#[tokio::test]
async fn a_killed_function_is_started_again_when_needed() {
    let mut app = App::start().await;
    for n in 1..=5 {
        app.post_user(Uuid::new_v4(), "someone").await;
        app.eventually("it is counted", async |app| app.user_count().await == n).await;
        for pid in app.function_pids().await {
            signal(pid, Signal::KILL);
            // Until then the runtime may send a request to the killed process and return a 502.
            let noticed = async |app: &mut App| !app.function_pids().await.contains(&pid);
            app.eventually("the runtime sees that it is gone", noticed).await;
        }
    }
    app.settle().await;
    assert_eq!(app.user_count().await, 5);
}

#[tokio::test]
async fn a_runtime_whose_data_another_one_took_ends_with_a_failure() {
    let mut app = App::start().await;
    let [lock, other] = ["runtime.lock", "other.lock"].map(|name| app.data.path().join(name));
    let taken = std::fs::File::create(&other).unwrap();
    taken.try_lock().unwrap();
    std::fs::rename(&other, &lock).unwrap();
    assert_eq!(app.exit_code(Duration::from_secs(60)).await, Some(1));
}

#[tokio::test]
async fn a_second_runtime_on_the_same_data_is_refused() {
    let app = App::start().await;
    let second = program(&app.stores, app.data.path(), "127.0.0.1:0").output().unwrap();
    let why = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && why.contains("--data"), "{why}");
}

#[tokio::test]
async fn deleted_views_come_back_by_tick_and_replay() {
    let mut app = App::start().await;
    for n in 0..30 {
        app.post_user(Uuid::new_v4(), &format!("user{n}")).await;
    }
    app.settle().await;
    let before = app.analytics().await;
    assert_eq!(app.stop(), Some(0));
    for file in std::fs::read_dir(app.data.path()).unwrap() {
        let file = file.unwrap();
        if file.file_name().to_string_lossy().starts_with("views.db") {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    app.restart();
    app.tick("?full=true").await;
    // The batch layer has the users after the tick, the speed layer only after a replay.
    assert_eq!(app.user_count().await, 30);
    assert_eq!(app.analytics().await["longestNameUser"], before["longestNameUser"]);
    let replay = app.command(&["replay", "--to", "count"]);
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    assert_eq!(app.get("/function/count/user/count").await, json!({ "userCount": 30 }));
    assert_eq!(app.user_count().await, 30);
    app.post_user(Uuid::new_v4(), "one more").await;
    app.eventually("it is counted too", async |app| app.user_count().await == 31).await;
}

#[test]
fn a_wrong_configuration_ends_at_once_and_names_the_key() {
    for (function, key, value) in [
        ("ingest", "LOG_URL", "redis://localhost"),
        ("ingest", "PORT", "http"),
        ("count", "VIEWS_URL", "sqlite"),
        ("store", "MASTER_URL", "postgres://user:hunter2@localhost/db"),
        ("batch", "LOG_LEVEL", "lambda=loud"),
        ("analytics", "METRICS_PORT", "99999"),
        ("analytics", "CONFIG_FILE", "/does/not/exist"),
    ] {
        let ended = std::process::Command::new(PROGRAM)
            .args(["function", function])
            .env(key, value)
            .output()
            .unwrap();
        let line = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(64), "{key}: {line}");
        assert!(line.contains(key) && line.lines().count() == 1 && !line.contains("hunter2"), "{line}");
    }
}
