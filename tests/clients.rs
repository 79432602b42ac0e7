//! Interoperability with the CloudEvents SDK for Python, which runs in a separate process. It sends events in all three
//! modes and reads the events that functions receive.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use backend_log::Delivered;
use domain::User;
use eventing::event::{Event, Origin};
use framework::user_event;
use http::HeaderMap;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    app::App,
    not_run::{Lacks, not_run},
};

/// Returns the Python of a virtual environment with the SDK under `target/`, or the reason why it is not available. A
/// lock makes concurrent test processes create the environment only once.
fn python() -> Result<PathBuf, String> {
    let lock = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cloudevents.lock");
    let lock = File::create(lock).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cloudevents-2.2");
    let python = folder.join("bin/python");
    let has_sdk = || {
        Command::new(&python)
            .args(["-c", "import cloudevents.core.bindings.http"])
            .output()
            .is_ok_and(|o| o.status.success())
    };
    if has_sdk() {
        return Ok(python);
    }
    let run = |program: &str, args: &[&str]| match Command::new(program).args(args).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(format!("{program}: {error}")),
    };
    run("python3", &["-m", "venv", folder.to_str().unwrap()])?;
    run(python.to_str().unwrap(), &["-m", "pip", "install", "--quiet", "cloudevents==2.2.*"])?;
    has_sdk().then_some(python.clone()).ok_or_else(|| "the SDK cannot be imported".to_owned())
}

/// Runs the script on `input`. Returns the last line of its output as JSON.
fn run(python: &Path, what: &str, input: &str) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients.py");
    let ran = Command::new(python).args([script, what, input]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}{err}");
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

#[tokio::test]
async fn functions_take_what_the_python_sdk_sends_in_all_modes() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => {
            return not_run(Lacks::Python, &format!("there is no Python SDK of CloudEvents here: {why}"));
        }
    };
    let mut app = App::start().await;
    let sent = run(&python, "send", &format!("http://{}", app.address));
    app.settle().await;
    assert_eq!(app.user_count().await, sent["users"].as_u64().unwrap());
}

#[tokio::test]
async fn the_python_sdk_reads_what_is_written_here_in_all_modes() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => {
            return not_run(Lacks::Python, &format!("there is no Python SDK of CloudEvents here: {why}"));
        }
    };
    // Binary, as a source sends it to a function.
    let user = User { id: Uuid::new_v4(), name: "Zoë 日本 100 %".to_owned() };
    let mut event = user_event::ingested(&user, &HeaderMap::new()).unwrap();
    event.set("spoken", "Zoë \"日本\" 100 %".to_owned());
    let record = user_event::to_record(&event, &user);
    let delivered = Delivered { partition: 3, offset: 14, time_ms: 0, record };
    let origin = Origin { namespace: "default", name: "log-to-count", topic: "user" };
    let sent = Event::of_record(&delivered, origin).unwrap();
    let request = sent.to_request("default").unwrap();
    let headers: BTreeMap<_, _> =
        request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    let binary = json!({ "headers": headers, "body": String::from_utf8_lossy(request.body()) });
    // Structured and batched, as dead letters are written.
    let mut app = App::start().await;
    app.post_user(user.id, &user.name).await;
    app.post_user(user.id, "another name").await;
    app.settle().await;
    let command = |args: &[&str]| String::from_utf8(app.command(args).stdout).unwrap();
    let batched = command(&["dead-letters", "list", "--json"]);
    let list = command(&["dead-letters", "list"]);
    let structured = command(&["dead-letters", "show", list.split_whitespace().next().unwrap(), "--json"]);
    let input = json!({ "binary": binary, "structured": structured, "batched": batched }).to_string();

    let read = run(&python, "read", &input);
    assert_eq!(read["binary"]["spoken"], "Zoë \"日本\" 100 %");
    assert_eq!(read["binary"]["knativekafkaoffset"], "14");
    assert_eq!(read["binary"]["data"], json!({ "id": user.id, "name": user.name }));
    for mode in ["structured", "batched"] {
        assert_eq!(read[mode]["knativeerrorcode"], "422", "{mode}");
        assert_eq!(read[mode]["subject"], json!(user.id), "{mode}");
        assert_eq!(read[mode]["data"]["name"], "another name", "{mode}");
    }
}
