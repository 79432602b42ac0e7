//! The commands that list, show, replay and drop dead letters and that replay the log, at any time and repeatedly.

use serde_json::json;
use uuid::Uuid;

use crate::{
    app::{App, program},
    function::{Function, ask_until_ready},
    stores::Stores,
    wire,
};

/// Posts two names for one id. The second one can never be stored.
async fn conflict(app: &mut App) -> Uuid {
    let id = Uuid::new_v4();
    app.post_user(id, "the first").await;
    app.post_user(id, "the second").await;
    app.settle().await;
    id
}

fn command(app: &App, args: &[&str]) -> String {
    let output = app.command(args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {out}{err}");
    out.into_owned()
}

#[tokio::test]
async fn a_conflict_ends_in_the_dead_letter_with_its_reason() {
    let mut app = App::start().await;
    let id = conflict(&mut app).await;
    app.post_user(Uuid::new_v4(), "someone behind it").await;
    app.settle().await;
    assert_eq!(app.user_count().await, 2);

    let list = command(&app, &["dead-letters", "list"]);
    let letter = list.lines().find(|line| line.contains("store")).unwrap();
    assert!(letter.contains("422") && letter.contains("the first"), "{list}");
    let name = letter.split_whitespace().next().unwrap();
    let shown = command(&app, &["dead-letters", "show", name]);
    for part in [&id.to_string(), "the second", "the first", "knativeerrorcode", "422"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let status = app.get("/status").await;
    assert_eq!(status["deadLetters"], json!(1), "{status}");
}

#[tokio::test]
async fn a_replayed_letter_that_fails_again_stays_and_a_dropped_one_goes() {
    let mut app = App::start().await;
    conflict(&mut app).await;
    for _ in 0..2 {
        let replay = app.command(&["dead-letters", "replay", "--all"]);
        let out = String::from_utf8_lossy(&replay.stdout).into_owned();
        assert!(!replay.status.success() && out.contains("422"), "{out}");
        assert_eq!(command(&app, &["dead-letters", "list"]).matches("422").count(), 1);
    }
    command(&app, &["dead-letters", "drop", "--all"]);
    assert!(!command(&app, &["dead-letters", "list"]).contains("422"));
    command(&app, &["dead-letters", "drop", "--all"]);
    command(&app, &["dead-letters", "replay", "--all"]);
    assert_eq!(app.user_count().await, 1);
}

#[tokio::test]
async fn replays_change_nothing_that_was_counted_or_stored() {
    let mut app = App::start().await;
    for n in 0..50 {
        app.post_user(Uuid::new_v4(), &format!("user{n}")).await;
    }
    app.settle().await;
    let before = app.analytics().await;
    for args in [
        ["replay", "--to", "count", "--from", "BEGINNING"],
        ["replay", "--to", "store", "--from", "BEGINNING"],
        ["replay", "--to", "count", "--from", "2020-01-01T00:00:00Z"],
        ["replay", "--to", "store", "--from", "2100-01-01T00:00:00Z"],
    ] {
        command(&app, &args);
        command(&app, &args);
    }
    assert_eq!(app.analytics().await, before);
    assert_eq!(app.tick("?full=true").await["users"], json!(50));
    assert!(!command(&app, &["dead-letters", "list"]).contains("store"));
}

/// Runs a command with environment variables. Returns whether it succeeded, and its output.
fn command_with(app: &App, variables: &[(&str, &str)], args: &[&str]) -> (bool, String) {
    let mut command = program(&app.stores, app.data.path(), "127.0.0.1:0");
    let output = command.args(args).envs(variables.iter().copied()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn a_replay_through_a_gateway_reaches_the_functions_behind_it() {
    let mut app = App::start_with(Stores::Embedded, |_, manifest| manifest).await;
    conflict(&mut app).await;
    let gateway = format!("http://{}", app.address);
    let (done, printed) = command_with(&app, &[], &["dead-letters", "replay", "--all", "--via", &gateway]);
    assert!(!done && printed.contains("the first"), "the running store decides: {printed}");
    assert!(command(&app, &["dead-letters", "list"]).contains("422"));

    // Another system, which has no users yet.
    let mut other = App::start_with(Stores::Embedded, |_, manifest| manifest).await;
    let gateway = format!("http://{}", other.address);
    for function in ["count", "store"] {
        let (done, printed) = command_with(&app, &[], &["replay", "--to", function, "--via", &gateway]);
        // The other system refuses the second name of the same user, too.
        assert!(done || function == "store", "{printed}");
    }
    assert_eq!(other.tick("").await["users"], json!(1));
    assert_eq!(other.user_count().await, 1);
    assert_eq!(app.user_count().await, 1);
}

#[tokio::test]
async fn a_replay_sends_the_event_token_and_names_it_where_it_is_missing() {
    let mut app = App::start_with(Stores::Embedded, |_, manifest| manifest).await;
    let id = conflict(&mut app).await;
    let folder = tempfile::tempdir().unwrap();
    let store = Function::start("store", folder.path(), &[("EVENT_TOKEN", "s3cret".to_owned())]);
    ask_until_ready(store.address, "/readyz").await;
    let via = format!("http://{{function}}@{}", store.address);
    let args = ["dead-letters", "replay", "--all", "--via", &via];
    for wrong in [&[][..], &[("EVENT_TOKEN", "other")]] {
        let (done, printed) = command_with(&app, wrong, &args);
        assert!(!done && printed.contains("EVENT_TOKEN"), "{printed}");
        assert!(command(&app, &["dead-letters", "list"]).contains("422"));
    }
    let (done, printed) = command_with(&app, &[("EVENT_TOKEN", "s3cret")], &args);
    assert!(done && printed.contains("store took it"), "{printed}");
    assert!(!printed.contains("s3cret"), "{printed}");
    assert!(!command(&app, &["dead-letters", "list"]).contains("422"));
    // The function itself has stored the event: another name of the same user is a conflict there.
    let other_name = json!({ "specversion": "1.0", "id": "1", "source": "/t", "type": "user",
        "data": { "id": id, "name": "the third" } });
    let headers = [("content-type", "application/cloudevents+json"), ("x-event-token", "s3cret")];
    let request = wire::request("POST", "/", &headers, other_name.to_string().as_bytes());
    let answer = wire::ask(store.address, &request).await.unwrap();
    assert_eq!(answer.status, 422, "{answer:?}");
    assert!(answer.problem().contains("the second"), "{answer:?}");
}

#[tokio::test]
async fn a_replay_says_what_is_wrong_with_its_arguments() {
    let app = App::start().await;
    for args in [
        vec!["replay"],
        vec!["replay", "--to", "batch"],
        vec!["replay", "--to", "count", "--from", "yesterday"],
        vec!["dead-letters", "show", "nothing"],
        vec!["dead-letters", "show", "0:999999"],
    ] {
        let output = app.command(&args);
        assert!(!output.status.success(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_command_that_would_send_a_remote_log_into_local_stores_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let broker = ("LOG_URL", "kafka://127.0.0.1:1/user");
    let master = ("MASTER_URL", "mysql://root:root@127.0.0.1:1/lambda");
    for variables in [vec![broker], vec![broker, master]] {
        for args in [
            &["dead-letters", "replay", "--all"][..],
            &["dead-letters", "replay", "0:0"],
            &["replay", "--to", "count"],
            &["replay", "--to", "store"],
        ] {
            let mut command = program(&Stores::Embedded, data.path(), "127.0.0.1:0");
            let output = command.args(args).envs(variables.iter().copied()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(64), "{args:?} {variables:?}: {said}");
            assert!(said.contains("VIEWS_URL"), "{args:?} {variables:?}: {said}");
        }
    }
    let stores = ["master.db", "views.db"].map(|file| data.path().join(file));
    assert!(!stores.iter().any(|store| store.exists()), "a local store was made");
}
