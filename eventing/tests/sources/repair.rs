//! The manifests of this project, dead letters and replays.

use std::{sync::Arc, sync::atomic::Ordering::SeqCst, time::Duration};

use backend_log::{Log, Start};
use eventing::{
    dead_letters::DeadLetters,
    event_sources::{self, Resources},
    manifest::Manifest,
    ping,
    replay::{Replayed, replay},
    sink::{Sink, SinkError},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::harness::{Function, SERVICES, Shared, arrows, event, eventually, source, status, value};

const DEAD: &str = "user-dead-letter";

#[test]
fn the_manifests_of_this_project_lead_from_the_log_to_its_functions() {
    let arrows = arrows();
    let sources = arrows.sources();
    let found: Vec<_> =
        sources.iter().map(|s| (&*s.name, &*s.topic, &*s.group, &*s.function, &*s.dead_letters)).collect();
    assert_eq!(
        found,
        [("log-to-count", "user", "count", "count", DEAD), ("log-to-store", "user", "store", "store", DEAD)]
    );
    assert!(arrows.read_topic("user") && !arrows.read_topic("user-dead-letter"));
    assert!(sources.iter().all(|s| s.delivery.retry == 240 && s.start == Start::Earliest));
    assert_eq!(arrows.ping_sources[0].spec.sink.reference.name, "batch");
}

#[test]
fn a_name_that_leads_nowhere_is_an_error_with_file_and_line() {
    let count = include_str!("../../log-to-count.yaml");
    let letter = ("dead-letter.yaml", include_str!("../../dead-letter.yaml"));
    for (text, files, said) in [
        (count.to_owned(), vec![letter], "`count`"),
        (count.to_owned(), vec![("services.yaml", SERVICES)], "`dead-letter`"),
        (
            count.replace("serving.knative.dev/v1", "v1"),
            vec![("services.yaml", SERVICES), letter],
            "v1 Service",
        ),
        (
            count.replace("kind: KafkaSink", "kind: Service"),
            vec![("services.yaml", SERVICES)],
            "deadLetterSink",
        ),
    ] {
        let files = files.into_iter().chain([("log-to-count.yaml", text.as_str())]);
        let error = Resources::read(files).unwrap_err();
        assert!(error.file == "log-to-count.yaml" && error.line > 1 && error.why.contains(said), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_letter_is_open_until_it_was_replayed_or_dropped() {
    let log = Shared::default();
    for (id, key) in [("1", "a"), ("2", "b"), ("3", "c")] {
        log.0.put("user", event(id, key));
    }
    let refusing = Function::new(Duration::ZERO, |_| status(400));
    let running = crate::harness::run(source("log-to-count"), &log, &refusing);
    eventually("three are dead", || running.progress.dead.load(SeqCst) == 3).await;
    running.end().await;

    let letters = DeadLetters::read(&log, DEAD).await.unwrap();
    assert_eq!((letters.len(), letters[0].function(), letters[0].code()), (3, "count", Some("400")));
    assert!(letters[0].replay(&log, DEAD, &*refusing, &arrows().fed_functions()).await.is_err());
    let willing = Function::new(Duration::ZERO, |_| status(200));
    letters[0].replay(&log, DEAD, &*willing, &arrows().fed_functions()).await.unwrap();
    letters[1].discard(&log, DEAD).await.unwrap();
    // Discarding it again has no effect.
    letters[1].discard(&log, DEAD).await.unwrap();
    let left = DeadLetters::read(&log, DEAD).await.unwrap();
    assert_eq!(left.iter().map(|letter| letter.id).collect::<Vec<_>>(), [letters[2].id]);

    let requests = willing.requests.lock().unwrap();
    let (function, request) = &requests[0];
    assert_eq!((function.as_str(), value(request, "ce-source")), ("count", "/test".to_owned()));
    assert!(request.headers().keys().all(|name| !name.as_str().starts_with("ce-knativeerror")));
}

#[tokio::test(start_paused = true)]
async fn an_event_cannot_resolve_a_dead_letter_or_say_why_it_died() {
    let log = Shared::default();
    log.0.put("user", event("victim", "a"));
    let mut forged = event("forged", "a");
    for (name, value) in [
        ("ce_type", "dev.lambda-architecture.dead-letter.resolved"),
        ("ce_subject", "1:0"),
        ("ce_knativeerrordest", "http://batch.default.svc.cluster.local"),
        ("ce_knativeerrorcode", "599"),
        ("lambda-architecture-resolution", r#"{"partition":1,"offset":0,"how":"dropped"}"#),
        ("lambda-architecture-undeliverable", ""),
        ("lambda-architecture-truncated", "1"),
    ] {
        forged.headers.retain(|(n, _)| n != name);
        forged.push_header(name, value);
    }
    log.0.put("user", forged);
    let refusing = Function::new(Duration::ZERO, |_| Err(SinkError("refused".into())));
    let running = crate::harness::run(source("log-to-count"), &log, &refusing);
    eventually("both are dead", || running.progress.dead.load(SeqCst) == 2).await;
    running.end().await;
    let letters = DeadLetters::read(&log, DEAD).await.unwrap();
    assert_eq!(letters.iter().map(|letter| letter.id.to_string()).collect::<Vec<_>>(), ["1:0", "1:1"]);
    assert_eq!((letters[1].function(), letters[1].code()), ("count", None));
    let willing = Function::new(Duration::ZERO, |_| status(200));
    letters[1].replay(&log, DEAD, &*willing, &arrows().fed_functions()).await.unwrap();
    assert_eq!(willing.heard("ce-id"), ["forged"]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_goes_only_where_a_source_leads() {
    let (log, willing) = (Shared::default(), Function::new(Duration::ZERO, |_| status(200)));
    for (destination, function) in [
        ("http://count.default.svc.cluster.local", "count"),
        ("http://gateway.openfaas:8080/function/count", "count"),
        ("http://10.62.0.1:8080/faas/function/count/", "count"),
        ("http://batch.default.svc.cluster.local", "batch"),
        ("http://gateway:8080/function/../system", ""),
        ("", ""),
    ] {
        let mut record = event("1", "a");
        record.push_header("ce_knativeerrordest", destination);
        log.0.put(DEAD, record);
        let letter = DeadLetters::read(&log, DEAD).await.unwrap().pop().unwrap();
        assert_eq!(letter.function(), function, "{destination}");
        let replayed = letter.replay(&log, DEAD, &*willing, &arrows().fed_functions()).await;
        assert_eq!(replayed.is_ok(), function == "count", "{destination}");
        letter.discard(&log, DEAD).await.unwrap();
    }
    assert!(willing.requests.lock().unwrap().iter().all(|(function, _)| function == "count"));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_says_where_its_record_was_and_keeps_its_extensions() {
    let log = Shared::default();
    log.0.put("user", event("1", "a"));
    let mut died = event("2", "a");
    died.push_header("ce_own", "kept");
    log.0.put("user", died);
    let picky =
        Function::new(Duration::ZERO, |r: &_| status(if value(r, "ce-id") == "2" { 400 } else { 200 }));
    let running = crate::harness::run(source("log-to-count"), &log, &picky);
    eventually("one is dead", || running.progress.dead.load(SeqCst) == 1).await;
    running.end().await;
    let letter = DeadLetters::read(&log, DEAD).await.unwrap().remove(0);
    let origin = ["knativekafkapartition", "knativekafkaoffset"].map(|name| letter.event.attribute(name));
    assert_eq!((letter.id.to_string().as_str(), origin), ("1:0", [Some("1"), Some("1")]));
    let willing = Function::new(Duration::ZERO, |_| status(200));
    letter.replay(&log, DEAD, &*willing, &arrows().fed_functions()).await.unwrap();
    assert_eq!(
        (willing.heard("ce-own"), willing.heard("ce-knativekafkaoffset")),
        (vec!["kept".into()], vec!["1".into()])
    );
}

#[tokio::test(start_paused = true)]
async fn a_record_of_the_dead_letters_that_is_no_event_is_listed_too() {
    let log = Shared::default();
    let mut broken = event("1", "a");
    broken.push_header("ce_other", &[0xff][..]);
    log.0.put(DEAD, broken);
    let letter = DeadLetters::read(&log, DEAD).await.unwrap().remove(0);
    assert_eq!(letter.function(), "");
    letter.discard(&log, DEAD).await.unwrap();
    assert!(DeadLetters::read(&log, DEAD).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_replay_sends_all_up_to_now_as_the_source_did() {
    let log = Shared::default();
    for n in 0..2_500 {
        log.0.put("user", event(&n.to_string(), ["a", "b", "c", "d"][n % 4]));
    }
    let later = log.clone();
    let store = Function::new(Duration::ZERO, move |r: &_| {
        later.0.put("user", event("later", "a"));
        status(if value(r, "ce-id") == "7" { 422 } else { 200 })
    });
    let replayed = replay(&source("log-to-store"), Start::Earliest, &log, &*store, |_| {}).await.unwrap();
    assert_eq!(replayed, Replayed { delivered: 2_499, rejected: 1 });
    assert_eq!(store.most_of_a_partition.load(SeqCst), 1);
    assert!(log.0.committed().is_empty() && log.0.records(DEAD).is_empty());
    assert!(!store.heard("ce-id").contains(&"later".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_replay_to_a_function_that_is_away_says_so() {
    let log = Shared::default();
    log.0.put("user", event("1", "a"));
    for code in [503, 429] {
        let away = Function::new(Duration::ZERO, move |_| status(code));
        assert!(replay(&source("log-to-count"), Start::Earliest, &log, &*away, |_| {}).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn all_arrows_play_at_once_and_tell_what_they_did() {
    let memory = Shared::default();
    memory.0.put("user", event("1", "a"));
    memory.0.put("user", event("2", "b"));
    let function =
        Function::new(Duration::ZERO, |r: &_| status(if value(r, "ce-id") == "2" { 400 } else { 200 }));
    let (log, sink): (Arc<dyn Log>, Arc<dyn Sink>) = (Arc::new(memory.clone()), function.clone());
    let (news, mut lines) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let playing = event_sources::run(&arrows(), &log, &sink, news, &stop);
    eventually("both letters are seen", || playing.dead_letters() == 2).await;
    for arrow in playing.status().await {
        assert_eq!(
            (arrow.lag, arrow.delivered, arrow.dead, arrow.under_way),
            (Some(0), 1, 1, 0),
            "{arrow:?}"
        );
    }
    stop.cancel();
    playing.ended().await;
    assert!(lines.recv().await.is_some_and(|line| line.contains("said 400")));
}

#[test]
fn a_tick_is_an_event_as_a_ping_source_makes_it() {
    let text = include_str!("../../minute-to-batch.yaml");
    let Manifest::PingSource(source) = eventing::manifest::read("f", text).unwrap().remove(0) else {
        panic!("no PingSource")
    };
    let now = "2026-03-01T10:00:00.123Z".parse().unwrap();
    let event = ping::event(&source.metadata, &source.spec, now).unwrap();
    assert_eq!(event.attribute("type"), Some("dev.knative.sources.ping"));
    assert_eq!(event.attribute("source"), Some("/apis/v1/namespaces/default/pingsources/minute-to-batch"));
    assert_eq!(event.attribute("time"), Some("2026-03-01T10:00:00.123Z"));
    assert_ne!(
        event.attribute("id"),
        ping::event(&source.metadata, &source.spec, now).unwrap().attribute("id")
    );
    assert_eq!((event.content_type.as_deref(), &event.data[..]), (Some("application/json"), &b"{}"[..]));
}
