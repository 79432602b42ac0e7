//! Every acknowledged event is counted and stored, or becomes a dead letter. A request or record never blocks those
//! behind it.

use std::collections::BTreeSet;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use event::Record;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    app::App,
    stores::Stores,
    wire::{self, Answer},
};

const STRUCTURED: (&str, &str) = ("Content-Type", "application/cloudevents+json");
const BATCHED: (&str, &str) = ("Content-Type", "application/cloudevents-batch+json");

/// An event that ingest either acknowledges or refuses with a reason.
struct Case {
    what: &'static str,
    /// The detail of a refusal contains one of these words.
    named: &'static [&'static str],
    id: Uuid,
    request: Vec<u8>,
}

fn user(id: Uuid) -> Value {
    json!({ "id": id, "name": "deliverable" })
}

/// A structured event with the required members and `members`, which may replace required ones.
fn event(id: Uuid, members: impl IntoIterator<Item = (String, Value)>) -> Value {
    let mut event = json!({ "specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": user(id) });
    event.as_object_mut().unwrap().extend(members);
    event
}

fn structured(
    what: &'static str,
    named: &'static [&'static str],
    members: impl IntoIterator<Item = (String, Value)>,
) -> Case {
    let id = Uuid::new_v4();
    let body = event(id, members).to_string();
    Case { what, named, id, request: wire::request("POST", "/ingress/", &[STRUCTURED], body.as_bytes()) }
}

fn one(
    what: &'static str,
    named: &'static [&'static str],
    member: &'static str,
    value: impl Into<Value>,
) -> Case {
    structured(what, named, [(member.to_owned(), value.into())])
}

fn extensions(number: usize) -> Map<String, Value> {
    (0..number).map(|n| (format!("x{n}"), json!("v"))).collect()
}

fn batched(what: &'static str, named: &'static [&'static str], members: Map<String, Value>) -> Case {
    let id = Uuid::new_v4();
    let body = json!([event(id, members)]).to_string();
    Case { what, named, id, request: wire::request("POST", "/ingress/", &[BATCHED], body.as_bytes()) }
}

fn binary(what: &'static str, named: &'static [&'static str], header: (&str, &str)) -> Case {
    let id = Uuid::new_v4();
    let mut headers = vec![
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
        ("Content-Type", "application/json"),
    ];
    headers.retain(|(name, _)| *name != header.0);
    headers.push(header);
    let body = user(id).to_string();
    Case { what, named, id, request: wire::request("POST", "/ingress/", &headers, body.as_bytes()) }
}

fn cases() -> Vec<Case> {
    const NUMBER: &[&str] = &["extension", "attribute"];
    let long = "v".repeat(40_000);
    vec![
        one("data that says it is an event", &["datacontenttype"], "datacontenttype", STRUCTURED.1),
        one("data that says it is a batch", &["datacontenttype"], "datacontenttype", BATCHED.1),
        one(
            "the same in other letters",
            &["datacontenttype"],
            "datacontenttype",
            "Application/CloudEvents+JSON; charset=utf-8",
        ),
        one(
            "data of another event format",
            &["datacontenttype"],
            "datacontenttype",
            "application/cloudevents+xml+json",
        ),
        one("a second header", &["datacontenttype"], "datacontenttype", "application/json\r\nx: y"),
        one(
            "a media type beyond ASCII",
            &["datacontenttype"],
            "datacontenttype",
            "application/json; a=\u{e9}",
        ),
        one("a time after the year 9999", &["time"], "time", "9999-12-31T23:59:59-01:00"),
        one("a time before the year 1", &["time"], "time", "0001-01-01T00:00:00+01:00"),
        one("a leap second", &["time"], "time", "2016-12-31T23:59:60Z"),
        one("an empty subject", &["subject"], "subject", ""),
        one("a control character", &["subject"], "subject", "a\u{0}\nb"),
        one("a subject beyond ASCII", &["subject"], "subject", "Zo\u{eb} 日本 \"100 %\""),
        one("a subject that grows when encoded", &["subject"], "subject", "日".repeat(15_000)),
        one("a long id", &["id"], "id", long.clone()),
        one("a long source", &["source"], "source", format!("/{long}")),
        one("a long extension", &["longest"], "longest", long),
        one("an empty extension", &["nothing"], "nothing", ""),
        one("an extension that is a number", &["number"], "number", 7),
        one("an extension that is true", &["flag"], "flag", true),
        one("an extension that is an object", &["object"], "object", json!({ "a": 1 })),
        one("an empty key", &["partitionkey"], "partitionkey", ""),
        one("an extension of the dispatcher", &["knativeerrordest"], "knativeerrordest", "http://nowhere"),
        one("an extension of the source", &["knativekafkaoffset"], "knativekafkaoffset", "-7"),
        one("an extension named like a header", &["connection"], "connection", "close"),
        structured("an extension with a long name", &["x", "name"], [("x".repeat(20_000), json!("v"))]),
        structured("92 extensions", NUMBER, extensions(92)),
        structured("3,000 extensions", NUMBER, extensions(3_000)),
        batched("24,600 extensions in a batch", NUMBER, extensions(24_600)),
        binary("invalid UTF-8 once decoded", &["subject"], ("ce-subject", "%FF%FE")),
        binary("half an escape", &["subject"], ("ce-subject", "100%")),
        binary("an encoded line feed", &["subject"], ("ce-subject", "a%0Ab")),
        binary("an empty header", &["subject"], ("ce-subject", "")),
        binary("a quoted value", &["subject"], ("ce-subject", "\"a \\\"b\\\" c\"")),
        binary("an open quote", &["subject"], ("ce-subject", "\"a")),
        binary("an encoded source", &["source"], ("ce-source", "/caf%C3%A9%20x")),
        binary("a time after the year 9999 in a header", &["time"], ("ce-time", "9999-12-31T23:59:59-01:00")),
    ]
}

/// Returns `false` if the event was acknowledged. A refusal must be a 400 whose detail names what is wrong.
fn is_refused(case: &Case, answer: Option<Answer>) -> bool {
    let Case { what, named, .. } = case;
    let answer = answer.unwrap_or_else(|| panic!("{what}: no answer"));
    if answer.status == 202 {
        return false;
    }
    let detail = answer.problem();
    // Data that is not JSON gets a 415 whose detail names the media type itself.
    if answer.status == 415 && named == &["datacontenttype"] {
        return true;
    }
    assert_eq!(answer.status, 400, "{what}: {detail}");
    assert!(
        named.iter().any(|name| detail.contains(name)),
        "{what}: the refusal names none of {named:?}: {detail}"
    );
    true
}

/// The ids of the users in dead letters, whether the data is JSON or Base64.
fn in_dead_letters(letters: &[Value]) -> BTreeSet<Uuid> {
    let user = |letter: &Value| match letter["data"]["id"].as_str() {
        Some(id) => Uuid::parse_str(id).ok(),
        None => {
            let data = BASE64_STANDARD.decode(letter["data_base64"].as_str()?).ok()?;
            let user: Value = serde_json::from_slice(&data).ok()?;
            Uuid::parse_str(user["id"].as_str()?).ok()
        }
    };
    letters.iter().filter_map(user).collect()
}

#[tokio::test]
async fn every_acknowledged_event_arrives_or_ends_in_the_dead_letter() {
    let mut app = App::start().await;
    let mut acknowledged = Vec::new();
    for case in cases() {
        let answer = wire::ask(app.address, &case.request).await;
        if !is_refused(&case, answer) {
            acknowledged.push(case);
        }
    }
    let behind = Uuid::new_v4();
    app.post_user(behind, "behind them").await;
    app.settle().await;
    let (stored, counted) =
        (app.stores.stored(app.data.path()).await, app.stores.counted(app.data.path()).await);
    assert!(stored.contains(&behind) && counted.contains(&behind), "something is stuck");
    let dead = in_dead_letters(&app.dead_letters());
    for Case { what, id, .. } in &acknowledged {
        let arrived = stored.contains(id) && counted.contains(id);
        assert!(arrived || dead.contains(id), "{what}: acknowledged and gone");
    }
    // After a restart, nothing in the log may stop the event sources again.
    app.kill_and_restart();
    let again = Uuid::new_v4();
    app.post_user(again, "after a restart").await;
    app.settle().await;
    assert!(app.stores.stored(app.data.path()).await.contains(&again));
    assert!(app.stores.counted(app.data.path()).await.contains(&again));
}

#[tokio::test]
async fn attributes_reach_the_log_as_they_were_meant() {
    let mut app = App::start().await;
    for (sent, name, meant) in [
        (("ce-source", "/caf%C3%A9"), "ce_source", "/caf\u{e9}"),
        (("ce-subject", "\"quoted by an older sender\""), "ce_subject", "quoted by an older sender"),
        (("ce-subject", "Zo%C3%AB%20%22100%20%25%22"), "ce_subject", "Zo\u{eb} \"100 %\""),
        (("ce-spoken", "%E6%97%A5%E6%9C%AC"), "ce_spoken", "日本"),
    ] {
        let case = binary("an attribute", &[], sent);
        assert_eq!(wire::ask(app.address, &case.request).await.unwrap().status, 202, "{sent:?}");
        let record = find(&app, case.id).await;
        let header = record.header(name).map(|value| String::from_utf8_lossy(value).into_owned());
        assert_eq!(header.as_deref(), Some(meant), "{sent:?}");
    }
    app.settle().await;
    assert_eq!(app.user_count().await, 4);
}

/// The log's URL and the topic of users.
fn log(app: &App) -> (std::sync::Arc<dyn backend_log::Log>, String) {
    let url = match &app.stores {
        Stores::Embedded => format!("sqlite:{}", app.data.path().join("log.db").display()),
        Stores::Services(services) => services.log_url(),
    };
    (backend_log::open(&url).unwrap(), backend_log::topic(&url))
}

async fn find(app: &App, id: Uuid) -> Record {
    let (log, topic) = log(app);
    let mut consumer = log.consume(&topic, None, backend_log::Start::Earliest).await.unwrap();
    loop {
        let records = consumer.poll_now(1_000).await.unwrap();
        assert!(!records.is_empty(), "{id} is not in the log");
        let key = id.to_string().into_bytes();
        if let Some(found) = records.into_iter().find(|found| found.record.key.as_deref() == Some(&key[..])) {
            return found.record;
        }
    }
}

/// Invalid records, as other producers write them: no function accepts them. Their values are all different.
fn foreign_records() -> Vec<(&'static str, Record)> {
    let record = |headers: &[(&str, &[u8])], value: Option<&[u8]>| Record {
        key: None,
        headers: headers.iter().map(|(n, v)| ((*n).to_owned(), Some(Bytes::copy_from_slice(v)))).collect(),
        value: value.map(Bytes::copy_from_slice),
    };
    let event = |name: &'static str, value: &'static [u8]| {
        let needed: [(&str, &[u8]); 4] =
            [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/s"), ("ce_type", b"t")];
        let others = needed.into_iter().filter(move |(n, _)| *n != name);
        others.chain([(name, value)]).collect::<Vec<_>>()
    };
    let mut records = vec![
        ("a tombstone", record(&[], None)),
        ("bytes", record(&[], Some(b"\xff\xfe\0bytes"))),
        ("headers that are no UTF-8", record(&event("ce_subject", b"\xff\xfe"), Some(b"no utf-8"))),
        ("a required header that is no UTF-8", record(&event("ce_id", b"\xff"), Some(b"no utf-8 id"))),
        ("a required header that is empty", record(&event("ce_type", b""), Some(b"no type"))),
        ("a header with control characters", record(&event("ce_x", b"a\0\r\nb"), Some(b"control"))),
        ("a header with a bad name", record(&event("ce_\0 x", b"v"), Some(b"bad name"))),
        ("a header without a name", record(&event("ce_", b"v"), Some(b"no name"))),
        ("another version", record(&event("ce_specversion", b"7"), Some(b"version"))),
        (
            "a structured event that is garbage",
            record(&[("content-type", b"application/cloudevents+json")], Some(b"{garbage\xff")),
        ),
        (
            "a batch that is garbage",
            record(&[("content-type", b"application/cloudevents-batch+json")], Some(b"[garbage")),
        ),
        (
            "a media type that is no text",
            record(&event("content-type", b"application/json\r\n\xff"), Some(b"media type")),
        ),
        ("a large value", record(&[], Some(&[b'x'; 700_000]))),
    ];
    let many: Vec<_> = (0..30_000).map(|n| (format!("h{n}"), Some(Bytes::from_static(b"v")))).collect();
    let value = Some(Bytes::from_static(b"30,000 headers"));
    records.push(("30,000 headers", Record { key: None, headers: many.clone(), value }));
    let mut headers: Vec<_> =
        event("ce_x", b"y").into_iter().map(|(n, v)| (n.to_owned(), Some(Bytes::from_static(v)))).collect();
    headers.extend(many.into_iter().map(|(n, v)| (format!("ce_{n}"), v)));
    let value = Some(Bytes::from_static(b"30,000 attributes"));
    records.push(("30,000 attributes", Record { key: None, headers, value }));
    for (index, (_, record)) in records.iter_mut().enumerate() {
        // Keys that are not text, which put some of the records into other partitions.
        record.key = (index % 3 == 0).then(|| Bytes::from(vec![0xff, index as u8]));
    }
    records
}

/// The bytes of the record's value in a dead letter.
fn raw(letter: &Value) -> Vec<u8> {
    letter["data_base64"].as_str().map(|base64| BASE64_STANDARD.decode(base64).unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn foreign_records_end_in_the_dead_letter_and_stop_nobody() {
    let mut app = App::start().await;
    app.post_user(Uuid::new_v4(), "before them").await;
    let (log, topic) = log(&app);
    let records = foreign_records();
    let mut users = 1;
    for (_, record) in &records {
        log.append(&topic, vec![record.clone()]).await.unwrap();
        // A user behind it in the same partition.
        let user = user(Uuid::new_v4()).to_string();
        let behind = Record { key: record.key.clone(), headers: Vec::new(), value: Some(user.into()) };
        log.append(&topic, vec![behind]).await.unwrap();
        users += 1;
    }
    let expected = 2 * records.len();
    app.eventually("all foreign records are dead letters", async |app| {
        app.get("/status").await["deadLetters"].as_u64() == Some(expected as u64)
    })
    .await;
    app.settle().await;
    assert_eq!(app.user_count().await, users, "users behind foreign records");
    assert_eq!(app.tick("").await["users"], users);

    let letters = app.dead_letters();
    assert_eq!(letters.len(), expected);
    let raw_letters: Vec<_> = letters.iter().map(raw).collect();
    for (what, record) in &records {
        let value = record.value.as_deref().unwrap_or_default();
        let found = raw_letters.iter().filter(|raw| *raw == value).count();
        assert_eq!(found, 2, "{what}: the raw bytes are in the dead letters of both functions");
    }
    let list = app.command(&["dead-letters", "list"]);
    let list = String::from_utf8(list.stdout).unwrap();
    assert_eq!(list.lines().count(), expected, "{list}");
    for line in list.lines() {
        let id = line.split_whitespace().next().unwrap();
        assert!(app.command(&["dead-letters", "show", id]).status.success(), "{line}");
    }
    // A replay fails and keeps them, since no function accepts them. They can be dropped.
    assert!(!app.command(&["dead-letters", "replay", "--all"]).status.success());
    assert_eq!(app.dead_letters().len(), expected);
    assert!(app.command(&["dead-letters", "drop", "--all"]).status.success());
    assert!(app.dead_letters().is_empty());
    app.kill_and_restart();
    app.post_user(Uuid::new_v4(), "after a restart").await;
    app.settle().await;
    assert_eq!(app.user_count().await, users + 1);
}

/// Kafka accepts records of up to a million bytes. With the headers of a dead letter, this record is larger.
#[tokio::test]
async fn a_dead_letter_that_the_log_finds_too_large_is_cut_and_stops_nobody() {
    let mut app = App::start().await;
    let (log, topic) = log(&app);
    let value = Some(Bytes::from(vec![b'x'; 999_900]));
    log.append(&topic, vec![Record { value, ..Record::default() }]).await.unwrap();
    app.post_user(Uuid::new_v4(), "behind it").await;
    app.settle().await;
    assert_eq!(app.user_count().await, 1);
    let letters = app.dead_letters();
    assert_eq!(letters.len(), 2);
    for letter in &letters {
        let kept = raw(letter);
        assert!(
            kept.len() > 100_000 && kept.iter().all(|byte| *byte == b'x'),
            "{} bytes are left",
            kept.len()
        );
    }
}

/// Number of random events, and of random records, per run.
const RANDOM: usize = 150;

/// Building blocks of random names and values.
const PIECES: [&str; 22] = [
    "a", "Z", "0", "-", "_", " ", "%", "%0A", "%C3", "\"", "\\", "\t", "\n", "\r\n", "\0", "\u{1b}", "é",
    "日本", "😀", "\u{fdd0}", ":", "=;,",
];

fn text(random: &mut StdRng) -> String {
    let length = [1, 3, 12, 300, 5_000][random.random_range(0..5)];
    (0..random.random_range(0..=length)).map(|_| PIECES[random.random_range(0..PIECES.len())]).collect()
}

/// A structured event with a new user and random other members.
fn random_event(random: &mut StdRng, id: Uuid) -> Value {
    let mut event = json!({ "specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": user(id) });
    for _ in 0..random.random_range(0..4) {
        let known =
            ["id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "partitionkey"];
        let name = match random.random_range(0..3) {
            0 => text(random),
            1 => format!("x{}", random.random_range(0..100)),
            _ => known[random.random_range(0..known.len())].to_owned(),
        };
        let times = ["2022-05-14T16:57:40Z", "9999-12-31T23:59:59-01:00", "application/json", "text/plain"];
        event[name] = match random.random_range(0..6) {
            0 => Value::Null,
            1 => json!(random.random_range(i64::MIN..i64::MAX)),
            2 => json!(random.random_bool(0.5)),
            3 => json!(times[random.random_range(0..times.len())]),
            _ => json!(text(random)),
        };
    }
    event
}

/// A record with random headers and a random value. Half of the values are new users.
fn random_record(random: &mut StdRng, id: Uuid) -> Record {
    let known = ["ce_specversion", "ce_id", "ce_source", "ce_type", "content-type", "ce_time", "ce_subject"];
    let values = ["1.0", "1", "/s", "t", "application/json", "application/cloudevents+json"];
    let headers = (0..random.random_range(0..8)).map(|_| {
        let name = match random.random_bool(0.8) {
            true => known[random.random_range(0..known.len())].to_owned(),
            false => text(random),
        };
        let value = match random.random_range(0..3) {
            0 => text(random).into_bytes(),
            1 => random.random_iter().take(5).collect(),
            _ => values[random.random_range(0..values.len())].into(),
        };
        (name, random.random_bool(0.9).then(|| Bytes::from(value)))
    });
    let headers = headers.collect();
    let value = match random.random_range(0..4) {
        0 => None,
        1 => Some(random.random_iter().take(40).collect()),
        _ => Some(Bytes::from(user(id).to_string())),
    };
    Record { key: random.random_bool(0.5).then(|| id.as_bytes().to_vec().into()), headers, value }
}

#[tokio::test]
async fn whatever_is_acknowledged_or_appended_is_processed_or_a_dead_letter() {
    let seed =
        std::env::var("DELIVERABLE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("DELIVERABLE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut app = App::start().await;
    let mut acknowledged = BTreeSet::new();
    for _ in 0..RANDOM {
        let id = Uuid::from_u128(random.random());
        let body = random_event(&mut random, id).to_string();
        let request = wire::request("POST", "/ingress/", &[STRUCTURED], body.as_bytes());
        let answer = wire::ask(app.address, &request).await.unwrap();
        match answer.status {
            202 => drop(acknowledged.insert(id)),
            400 | 413 | 415 => {}
            _ => panic!("{answer:?} to {body}"),
        }
    }
    assert!(acknowledged.len() > RANDOM / 10, "{} acknowledged", acknowledged.len());
    let (log, topic) = log(&app);
    let mut appended = BTreeSet::new();
    for _ in 0..RANDOM {
        let id = Uuid::from_u128(random.random());
        appended.insert(id);
        log.append(&topic, vec![random_record(&mut random, id)]).await.unwrap();
    }
    // One more user, behind all others.
    let last = Uuid::new_v4();
    app.post_user(last, "behind them").await;
    acknowledged.insert(last);
    app.settle().await;
    let letters = app.dead_letters();
    let data = app.data.path();
    for (function, processed) in
        [("store", app.stores.stored(data).await), ("count", app.stores.counted(data).await)]
    {
        // What ingest acknowledges is valid for every function.
        assert!(processed.is_superset(&acknowledged), "{function} lacks an acknowledged user");
        let foreign = processed.difference(&acknowledged).count();
        assert!(processed.iter().all(|id| acknowledged.contains(id) || appended.contains(id)));
        let is_its =
            |letter: &&Value| letter["knativeerrordest"].as_str().is_some_and(|to| to.contains(function));
        let dead = letters.iter().filter(is_its).count();
        assert_eq!(foreign + dead, RANDOM, "{function}: {foreign} processed and {dead} dead letters");
    }
}
