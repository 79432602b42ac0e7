//! Kills, stops and restarts the real services while the system works, and starts the system before them. These tests
//! run alone, because no other test may need the services meanwhile. `infra/services/test.sh` starts the services and
//! sets their addresses.

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use backend_log::Start;
use hyper::Request;
use rustix::process::Signal;
use uuid::Uuid;

use crate::{
    app::{App, DEADLINE, runs, signal},
    chaos::agree,
    faulty_stores::{event, send_within, users, wait_in_transaction},
    function::{Function, ask_until_ready},
    load::Load,
    not_run::{Lacks, not_run},
    stores::{Services, Stores},
    wire,
};

/// Users of one run, each sent one to three times.
const USERS: usize = 20_000;
/// Time that a service is stopped for.
const STOPPED: Duration = Duration::from_secs(10);
/// Maximum time that a function refuses work after its store is back or its peer is gone. Far above the measured 0.1 to
/// 6 s on two busy cores, and far below the minutes or hours that an unbounded lock, session or back-off takes.
const RECOVERY: Duration = Duration::from_secs(15);
const SERVICES: [&str; 3] = ["kafka", "cassandra", "mariadb"];

/// Starts or stops a service and waits for completion.
fn service(verb: &str, name: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/infra/services/services.sh");
    let done = Command::new(script).args([verb, name]).output().unwrap();
    assert!(done.status.success(), "{verb} {name}: {}", String::from_utf8_lossy(&done.stderr));
}

fn send(name: &str, what: Signal) {
    let folder = std::env::var("SERVICES_DIR").unwrap();
    let pid = std::fs::read_to_string(format!("{folder}/{name}/pid")).unwrap().trim().parse().unwrap();
    signal(pid, what);
    // A killed process still listens until its memory is released.
    while what == Signal::KILL && runs(pid) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sets at least two replicas for each function that receives events.
fn two_replicas(path: &str, manifest: String) -> String {
    let one = "autoscaling.knative.dev/min-scale: \"0\"";
    match path.contains("count/service") || path.contains("store/service") {
        true => manifest.replace(one, "autoscaling.knative.dev/min-scale: \"2\""),
        false => manifest,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_are_killed_or_stopped_lose_nothing_and_count_nothing_twice() {
    let stores = Stores::new();
    let Stores::Services(names) = &stores else {
        return not_run(Lacks::Services, "there are no services here");
    };
    let names = names.clone();
    // Two runtimes share the consumer groups, with two processes of `count` and `store` each.
    let mut first = App::start_with(stores, two_replicas).await;
    let mut second = App::start_with(Stores::Services(names.clone()), two_replicas).await;
    let mut random = rand::SeedableRng::seed_from_u64(1);
    let load = Load::new(USERS, &mut random, vec![first.address, second.address]);
    let clients = load.start();
    let steps = SERVICES.len() * 2 + 2;
    for (step, name) in SERVICES.iter().chain(&SERVICES).enumerate() {
        let at_work = load.release((step + 1) as f64 / steps as f64);
        load.until_sent(at_work).await;
        if step < SERVICES.len() {
            send(name, Signal::KILL);
            service("up", name);
        } else {
            send(name, Signal::STOP);
            tokio::time::sleep(STOPPED).await;
            send(name, Signal::CONT);
        }
        // Its consumers disappear without leaving the consumer group, and new ones join.
        if step % 2 == 1 {
            second.kill_and_restart();
            load.moved(1, second.address);
        }
    }
    load.release(1.0);
    for client in clients {
        client.await.unwrap();
    }
    let acknowledged = load.acknowledged();
    assert_eq!(acknowledged.len(), USERS);
    assert_eq!(in_topic(&names).await, acknowledged, "topic");
    assert_eq!(second.stop(), Some(0));
    let letters = first.command(&["dead-letters", "list"]);
    assert_eq!(String::from_utf8_lossy(&letters.stdout), "", "nothing of this belongs into the dead letter");
    agree(&mut first, &acknowledged, 1).await;
}

/// The ids of all users in the topic.
async fn in_topic(services: &Services) -> BTreeSet<Uuid> {
    let log = backend_log::open(&services.log_url()).unwrap();
    let mut consumer = log.consume(&services.name, None, Start::Earliest).await.unwrap();
    let mut ids = BTreeSet::new();
    loop {
        let records = consumer.poll_now(1_000).await.unwrap();
        if records.is_empty() {
            return ids;
        }
        let key = |delivered: backend_log::Delivered| {
            Uuid::try_parse_ascii(&delivered.record.key.unwrap()).unwrap()
        };
        ids.extend(records.into_iter().map(key));
    }
}

#[tokio::test]
async fn what_starts_before_the_services_works_once_they_are_there() {
    let stores = Stores::new();
    if matches!(stores, Stores::Embedded) {
        return not_run(Lacks::Services, "there are no services here");
    }
    SERVICES.iter().for_each(|name| service("down", name));
    let mut app = App::start_with(stores, |_, manifest| manifest).await;
    for (path, missing) in [
        ("/ingress/readyz", "Kafka"),
        ("/function/count/readyz", "Cassandra"),
        ("/function/store/readyz", "MySQL"),
        ("/function/batch/readyz", "MySQL"),
        ("/service-analytics/readyz", "Cassandra"),
    ] {
        // The first responses may be sent before the first attempt to connect has failed.
        app.eventually("what is missing is named", async |app| {
            let answer = app.send(Request::get(path).body(bytes::Bytes::new()).unwrap()).await.unwrap();
            let said = String::from_utf8_lossy(answer.body()).into_owned();
            assert_eq!(answer.status(), 503, "{path}: {said}");
            said.contains(missing)
        })
        .await;
    }
    let id = Uuid::new_v4();
    let user = format!(r#"{{"id":"{id}","name":"early"}}"#);
    let answer = app.post("/ingress/user", user.clone()).await;
    assert_eq!(answer.status(), 503, "{:?}", answer.body());
    assert!(answer.headers().contains_key("retry-after"));
    SERVICES.iter().for_each(|name| service("up", name));

    let up = Instant::now();
    // The client's connection may have been closed in the meantime, because it was idle.
    app.post_user_until_taken(id, "early").await;
    app.eventually("the user is counted", async |app| {
        let answer =
            app.send(Request::get("/function/count/user/count").body(bytes::Bytes::new()).unwrap()).await;
        answer.is_ok_and(|answer| &answer.body()[..] == br#"{"userCount":1}"#)
    })
    .await;
    app.eventually("the user is stored", async |app| app.tick("").await["users"] == 1).await;
    println!("acknowledged, counted and stored {:?} after the services were up", up.elapsed());
    assert_eq!(app.user_count().await, 1);
}

#[tokio::test]
async fn a_store_works_again_after_its_server_was_killed_in_a_transaction() {
    let stores = Stores::new();
    let Stores::Services(names) = &stores else {
        return not_run(Lacks::Services, "there are no services here");
    };
    let folder = tempfile::tempdir().unwrap();
    let function = Function::start("store", folder.path(), &[("MASTER_URL", names.master_url())]);
    ask_until_ready(function.address, "/readyz").await;
    for n in 1..=3 {
        let id = Uuid::new_v4();
        // The function waits between the first statement and the commit of a transaction.
        let lock = wait_in_transaction(names, &function, id).await;
        send("mariadb", Signal::KILL);
        service("up", "mariadb");
        drop(lock);
        send_within(&function, id, RECOVERY).await;
        assert_eq!(users(names).await, n);
    }
    // The same with many concurrent transactions.
    let ids: Vec<_> = (0..300).map(|_| Uuid::new_v4()).collect();
    let address = function.address;
    let under_way = ids.iter().map(|id| {
        let event = event(*id);
        tokio::spawn(async move { wire::ask_and_hang_up(address, &event, DEADLINE).await })
    });
    let under_way: Vec<_> = under_way.collect();
    send("mariadb", Signal::KILL);
    service("up", "mariadb");
    for request in under_way {
        let _ = request.await;
    }
    for id in &ids {
        send_within(&function, *id, RECOVERY).await;
    }
    assert_eq!(users(names).await, 3 + ids.len() as i64);
}

/// Stops a service's process (SIGSTOP) until dropped.
struct Stopped(&'static str);

impl Stopped {
    fn now(name: &'static str) -> Self {
        send(name, Signal::STOP);
        Self(name)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        send(self.0, Signal::CONT);
    }
}

#[tokio::test]
async fn a_batch_on_a_server_that_hangs_gives_up_and_works_once_it_goes_on() {
    let stores = Stores::new();
    let Stores::Services(names) = &stores else {
        return not_run(Lacks::Services, "there are no services here");
    };
    let folder = tempfile::tempdir().unwrap();
    let function = ["store", "batch"]
        .map(|name| Function::start(name, folder.path(), &[("MASTER_URL", names.master_url())]));
    let [store, batch] = &function;
    for function in &function {
        ask_until_ready(function.address, "/readyz").await;
    }
    for query in ["/", "/?full=true"] {
        send_within(store, Uuid::new_v4(), RECOVERY).await;
        let headers = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/p"), ("ce-type", "t")];
        let tick = wire::request("POST", query, &headers, b"");
        let stopped = Stopped::now("mariadb");
        let status = wire::ask_and_hang_up(batch.address, &tick, DEADLINE).await;
        assert_eq!(status, Some(503), "{query}");
        drop(stopped);
        let answer = wire::ask(batch.address, &tick).await.unwrap();
        assert_eq!((answer.status, &answer.json()["users"]), (200, &users(names).await.into()), "{answer:?}");
    }
}
