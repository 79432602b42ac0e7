//! Interoperability with kcat, a Kafka client: the system counts what kcat produces, and kcat reads what `ingest`
//! wrote. Requires the real services and Debian's kcat.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    app::App,
    not_run::{Lacks, not_run},
    stores::{Services, Stores},
};

/// Runs kcat on the log's topic. Returns its standard output.
fn kcat(services: &Services, args: &[&str], input: &str) -> String {
    let mut command = Command::new("kcat");
    command.args(["-b", &services.kafka, "-t", &services.name]).args(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn what_kcat_produces_counts_as_what_ingest_does() {
    let mut app = App::start().await;
    let Stores::Services(services) = &app.stores else {
        return not_run(Lacks::Services, "there is no Kafka here");
    };
    let user = |name: &str| json!({ "id": Uuid::new_v4(), "name": name }).to_string();
    // A plain value without key or headers: the format before CloudEvents.
    kcat(services, &["-P"], &user("plain"));
    let event = ["specversion=1.0", "id=7", "source=/kcat", "type=com.example.user", "myextension=x"];
    let headers: Vec<String> = event.iter().map(|h| format!("ce_{h}")).collect();
    let mut args = vec!["-P", "-k", "a key of its own", "-H", "content-type=application/json"];
    headers.iter().for_each(|header| args.extend(["-H", header.as_str()]));
    kcat(services, &args, &user("binary"));
    let structured =
        format!(r#"{{"specversion":"1.0","id":"8","source":"/k","type":"t","data":{}}}"#, user("structured"));
    kcat(services, &["-P", "-H", "content-type=application/cloudevents+json"], &structured);
    kcat(services, &["-P"], "no user at all");
    app.post_user(Uuid::new_v4(), "posted").await;
    app.eventually("four are counted", async |app| app.user_count().await == 4).await;
    app.settle().await;
    assert_eq!(app.tick("").await["users"], 4);
    // The value that is not a user has become a dead letter of each of the two functions.
    app.eventually("two letters", async |app| app.get("/status").await["deadLetters"] == 2).await;
}

#[tokio::test]
async fn kcat_reads_what_ingest_wrote_as_a_cloud_event() {
    let mut app = App::start().await;
    let id = Uuid::new_v4();
    app.post_user(id, "Zoë 日本").await;
    let Stores::Services(services) = &app.stores else {
        return not_run(Lacks::Services, "there is no Kafka here");
    };
    let read = kcat(services, &["-C", "-e", "-q", "-f", "%k\t%h\t%s\n"], "");
    let [key, headers, value] = read.trim_end().split('\t').collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(key, id.to_string());
    assert_eq!(serde_json::from_str::<Value>(value).unwrap(), json!({ "id": id, "name": "Zoë 日本" }));
    let headers: Vec<_> = headers.split(',').filter_map(|header| header.split_once('=')).collect();
    for (name, expected) in [
        ("ce_specversion", "1.0"),
        ("ce_type", "dev.lambda-architecture.user.ingested"),
        ("ce_source", "/ingest"),
        ("ce_subject", &id.to_string()),
        ("ce_partitionkey", &id.to_string()),
        ("content-type", "application/json"),
    ] {
        assert!(headers.contains(&(name, expected)), "{name}: {headers:?}");
    }
    let of = |name| headers.iter().find(|(n, _)| *n == name).unwrap().1;
    assert_eq!(Uuid::parse_str(of("ce_id")).unwrap().get_version_num(), 7);
    assert!(chrono::DateTime::parse_from_rfc3339(of("ce_time")).is_ok());
}
