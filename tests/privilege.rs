//! Least privilege: a function reads only the configuration keys that its manifest names.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use eventing::event_sources::Resources;
use uuid::Uuid;

use crate::{
    app::{App, Options, PROGRAM},
    function::{Function, probe_until_ready},
    stores::Stores,
};

const FUNCTIONS: [&str; 5] = ["ingest", "count", "store", "batch", "analytics"];
/// Functions that only event sources call. On platforms without private functions, a token protects them.
const INTERNAL: [&str; 3] = ["count", "store", "batch"];
/// Keys that only some functions read, each with a value that these functions must refuse.
const WRONG: [(&str, &str); 5] = [
    ("LOG_URL", "redis://geheim@$(NOT_SET)"),
    ("MASTER_URL", "redis://geheim@$(NOT_SET)"),
    ("VIEWS_URL", "redis://geheim@$(NOT_SET)"),
    ("SPEED_RETENTION", "geheim"),
    ("EVENT_TOKEN", "ge heim"),
];

/// The keys that a function's manifest names, and the token's key if the function is internal.
fn own_keys(function: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("functions/{function}/service.yaml"));
    let manifest = Resources::read([(function, fs::read_to_string(path).unwrap().as_str())]).unwrap();
    let variables = manifest.services[0].spec.template.spec.containers[0].env.iter();
    let keys =
        variables.filter(|variable| variable.value_from.is_some()).map(|variable| variable.name.clone());
    keys.chain(INTERNAL.contains(&function).then(|| "EVENT_TOKEN".to_owned())).collect()
}

/// Runs a function with only these variables until it exits by itself.
fn run(function: &str, folder: &Path, variables: &[(&str, String)]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(["function", function]).current_dir(folder).env_clear().stdin(Stdio::null());
    command.envs(variables.iter().map(|(key, value)| (key, value))).output().unwrap()
}

#[tokio::test]
async fn a_function_starts_with_its_own_keys_though_all_others_are_wrong() {
    for function in FUNCTIONS {
        let folder = tempfile::tempdir().unwrap();
        let own = own_keys(function);
        let value = |(key, wrong): (&'static str, &str)| match (own.contains(key), key) {
            (false, _) => (key, wrong.to_owned()),
            (true, "SPEED_RETENTION") => (key, "1d".to_owned()),
            (true, "EVENT_TOKEN") => (key, "token".to_owned()),
            (true, _) => (key, format!("sqlite:{}", folder.path().join(format!("{key}.db")).display())),
        };
        let started = Function::start(function, folder.path(), &WRONG.map(value));
        probe_until_ready(started.address, "/readyz").await;
    }
}

#[test]
fn a_function_refuses_each_of_its_own_keys_that_is_wrong_and_names_it() {
    for function in FUNCTIONS {
        let own = own_keys(function);
        for (key, wrong) in WRONG.into_iter().filter(|(key, _)| own.contains(*key)) {
            let folder = tempfile::tempdir().unwrap();
            let ended = run(function, folder.path(), &[(key, wrong.to_owned())]);
            let line = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert_eq!(ended.status.code(), Some(64), "{function} {key}: {line}");
            assert!(line.starts_with(key) && line.lines().count() == 1, "{function} {key}: {line}");
            // A URL may contain a password.
            assert!(!(key.ends_with("_URL") && line.contains("geheim")), "{function} {key}: {line}");
        }
    }
}

#[tokio::test]
async fn a_store_that_no_manifest_names_lies_in_the_data_folder() {
    let without_env = |_: &str, manifest: String| match manifest.find("          env:\n") {
        Some(end) => manifest[..end].to_owned(),
        None => manifest,
    };
    let mut app = App::start_with(Stores::Embedded, without_env).await;
    app.post_user(Uuid::new_v4(), "someone").await;
    app.eventually("it is counted", async |app| app.user_count().await == 1).await;
    assert!(app.data.path().join("views.db").exists());
}

/// The names of the variables that a process was started with, or `None` if it has exited.
fn environment(pid: u32) -> Option<BTreeSet<String>> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let text = String::from_utf8(bytes).unwrap();
    let names = text.split('\0').filter_map(|variable| Some(variable.split_once('=')?.0.to_owned()));
    Some(names.collect::<BTreeSet<_>>()).filter(|names| !names.is_empty())
}

#[tokio::test]
async fn the_runtime_gives_a_function_its_own_keys_and_no_secret_of_another() {
    let secrets =
        [("MYSQL_PASSWORD", "geheim"), ("EVENT_TOKEN", "geheim"), ("AWS_SECRET_ACCESS_KEY", "geheim")];
    let variables = secrets.map(|(key, value)| (key, value.to_owned())).into();
    let options = Options { variables, ..Options::default() };
    let mut app = App::start_as(Stores::new(), options, |_, manifest| manifest).await;
    app.post_user(Uuid::new_v4(), "someone").await;
    app.eventually("it is counted", async |app| app.user_count().await == 1).await;
    let mut seen = BTreeSet::new();
    for (function, pid) in app.functions_with_pids().await {
        let Some(given) = environment(pid) else { continue };
        let own = own_keys(&function);
        for (key, _) in WRONG.into_iter().chain(secrets) {
            let may = own.contains(key) && key != "EVENT_TOKEN";
            assert!(may || !given.contains(key), "{function} was given {key}");
        }
        for key in own.iter().filter(|key| key.ends_with("_URL")) {
            assert!(given.contains(key), "{function} was not given {key}");
        }
        seen.insert(function);
    }
    assert!(seen.contains("ingest"), "{seen:?}");
}
