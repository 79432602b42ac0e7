//! Cases that only Kafka has: members that share a topic, a broker that is not available, other clients.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io::Write,
    os::unix::ffi::OsStrExt,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use backend_log::{Consumer, KafkaLog, Log, Polled, Start};
use domain::{Failure, FailureKind};
use futures_util::FutureExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rdkafka::{
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use tokio::time::timeout;

use crate::{fixture::kafka::Topics, next, numbered, read, read_now, record, records, value, values};

/// Reads and commits as a group member until `stop` is set, and releases revoked partitions. Returns the values it
/// read.
async fn member(
    mut consumer: Box<dyn Consumer>,
    seen: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
) -> Vec<usize> {
    let mut all = Vec::new();
    while !stop.load(SeqCst) {
        let Ok(polled) = timeout(Duration::from_millis(100), consumer.poll(10)).await else { continue };
        let records = records(polled.unwrap());
        consumer.commit(&next(&records)).await.unwrap_or_default();
        seen.fetch_add(records.len(), SeqCst);
        all.extend(records.iter().map(value));
    }
    all
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came about that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_join_and_leave_share_all_records_and_lose_none() {
    let topics = Topics::new().await;
    let (log, topic, group) = (Arc::new(topics.log("")), topics.name("t"), topics.name("g"));
    let (sent, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = {
        let (log, topic, sent, done) = (log.clone(), topic.clone(), sent.clone(), done.clone());
        tokio::spawn(async move {
            while !done.load(SeqCst) {
                let start = sent.fetch_add(20, SeqCst);
                log.append(&topic, numbered(start..start + 20)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    };
    let join = || async {
        let consumer = log.consume(&topic, Some(&group), Start::Earliest).await.unwrap();
        let (seen, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        (tokio::spawn(member(consumer, seen.clone(), stop.clone())), seen, stop)
    };
    let (first, first_seen, stop_first) = join().await;
    eventually("the first one reads", || first_seen.load(SeqCst) > 100).await;
    let (second, second_seen, stop_second) = join().await;
    eventually("the second one reads", || second_seen.load(SeqCst) > 300).await;
    let before = first_seen.load(SeqCst);
    eventually("both read", || first_seen.load(SeqCst) > before + 100).await;
    let left = Instant::now();
    stop_second.store(true, SeqCst);
    let second = second.await.unwrap();
    done.store(true, SeqCst);
    writer.await.unwrap();
    let total = sent.load(SeqCst);
    eventually("the first one has the rest", || first_seen.load(SeqCst) + second.len() >= total).await;
    assert!(
        left.elapsed() < Duration::from_secs(6),
        "others wait for a member that left: {:?}",
        left.elapsed()
    );
    stop_first.store(true, SeqCst);
    let first = first.await.unwrap();
    let all: BTreeSet<_> = first.iter().chain(&second).copied().collect();
    assert_eq!(all, (0..total).collect());
    let twice = first.len() + second.len() - total;
    assert!(twice <= 100, "{twice} of {total} came twice, more than can have been under way");
    topics.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_partition_stays_until_the_next_poll_so_that_it_can_be_committed() {
    let topics = Topics::new().await;
    let (log, topic, group) = (topics.log(""), topics.name("t"), topics.name("g"));
    log.append(&topic, numbered(0..100)).await.unwrap();
    let mut first = log.consume(&topic, Some(&group), Start::Earliest).await.unwrap();
    let read_first = read(&mut *first, 100).await;
    let mut second = log.consume(&topic, Some(&group), Start::Earliest).await.unwrap();
    let joining = tokio::spawn(async move {
        let polled = timeout(Duration::from_secs(1), second.poll(100)).await;
        (second, polled.map_or(0, |polled| records(polled.unwrap()).len()))
    });
    // A paused consumer still serves its group.
    first.pause();
    let polled = timeout(Duration::from_secs(10), first.poll(1)).await.unwrap().unwrap();
    assert!(matches!(&polled, Polled::Revoked(partitions) if !partitions.is_empty()), "{polled:?}");
    first.resume();
    let (mut second, too_early) = joining.await.unwrap();
    assert_eq!(too_early, 0, "it waits until the first one lets go");
    first.commit(&next(&read_first)).await.unwrap();
    let serving = tokio::spawn(async move { drop(timeout(Duration::from_secs(3), first.poll(1)).await) });
    assert_eq!(
        timeout(Duration::from_secs(2), second.poll(100))
            .await
            .map(|polled| records(polled.unwrap()).len())
            .unwrap_or(0),
        0
    );
    serving.await.unwrap();
    assert_eq!(second.committed().await.unwrap(), next(&read_first));
    topics.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_given_up_without_room_are_read_when_they_come_back() {
    let topics = Topics::new().await;
    let (log, topic, group) = (topics.log(""), topics.name("t"), topics.name("g"));
    log.append(&topic, numbered(0..100)).await.unwrap();
    let mut first = log.consume(&topic, Some(&group), Start::Earliest).await.unwrap();
    let read_first = read(&mut *first, 100).await;
    first.commit(&next(&read_first)).await.unwrap();
    let second = log.consume(&topic, Some(&group), Start::Earliest).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let second = tokio::spawn(member(second, Arc::default(), stop.clone()));
    first.pause();
    let polled = timeout(Duration::from_secs(10), first.poll(7)).await.unwrap().unwrap();
    assert!(matches!(polled, Polled::Revoked(_)), "{polled:?}");
    let _ = timeout(Duration::from_secs(1), first.poll(7)).await;
    // The first consumer resumes before the other one leaves.
    first.resume();
    let _ = timeout(Duration::from_secs(1), first.poll(7)).await;
    stop.store(true, SeqCst);
    second.await.unwrap();
    log.append(&topic, numbered(100..200)).await.unwrap();
    assert_eq!(values(&read(&mut *first, 100).await), (100..200).collect());
    topics.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_later_are_read_too() {
    let topics = Topics::new().await;
    let (log, topic) = (topics.log("topic.metadata.refresh.interval.ms=500"), topics.name("t"));
    let mut alone = log.consume(&topic, None, Start::Latest).await.unwrap();
    let mut member = log.consume(&topic, Some(&topics.name("g")), Start::Latest).await.unwrap();
    assert!(timeout(Duration::from_millis(500), alone.poll(1)).await.is_err());
    assert!(timeout(Duration::from_millis(500), member.poll(1)).await.is_err());
    let before = alone.watermarks().await.unwrap().len();
    topics.grow(before * 2).await;
    let writer = topics.log("topic.metadata.refresh.interval.ms=500");
    let mut sent = 0;
    let deadline = Instant::now() + Duration::from_secs(20);
    // Appends records until one is in a new partition.
    loop {
        assert!(Instant::now() < deadline, "no record went to a new partition");
        writer.append(&topic, vec![record(&format!("k{sent}"), &sent.to_string())]).await.unwrap();
        sent += 1;
        let kept = alone.watermarks().await.unwrap();
        if kept.iter().any(|(partition, kept)| *partition >= before as i32 && !kept.is_empty()) {
            break;
        }
    }
    assert_eq!(values(&read(&mut *alone, sent).await), (0..sent).collect());
    assert_eq!(values(&read(&mut *member, sent).await), (0..sent).collect());
    topics.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_busy_and_an_append_that_is_away_says_that_it_is_unknown() {
    let nowhere = backend_log::KafkaLog::new(
        "kafka://127.0.0.1:1/t?queue.buffering.max.messages=10&message.timeout.ms=1000",
    )
    .unwrap();
    let started = Instant::now();
    let mut waiting = std::pin::pin!(nowhere.append("t", numbered(0..8)));
    assert!(waiting.as_mut().now_or_never().is_none(), "it waits");
    let full = nowhere.append("t", numbered(0..3)).await.unwrap_err();
    assert_eq!(Failure::from(full).kind, FailureKind::Overloaded);
    let unknown = Failure::from(waiting.await.unwrap_err());
    assert_eq!(unknown.kind, FailureKind::Unavailable);
    assert!(unknown.to_string().contains("unknown whether the log has it"), "{unknown}");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    let away = Failure::from(nowhere.ready().await.unwrap_err()).to_string();
    assert!(away.contains("127.0.0.1:1") && away.contains("`t`"), "{away}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_passwords_open_a_brokers_doors_and_wrong_ones_do_not() {
    let topics = Topics::new().await;
    let variable = |key| std::env::var(key).unwrap_or_else(|_| panic!("infra/services/test.sh sets {key}"));
    let (tls, sasl, keys) = (variable("KAFKA_TLS"), variable("KAFKA_SASL"), variable("KAFKA_KEYS"));
    let text = |name: &str| {
        let pem = std::fs::read_to_string(format!("{keys}/{name}")).unwrap();
        utf8_percent_encode(&pem, NON_ALPHANUMERIC).to_string()
    };
    let ca = format!("ssl.ca.location={keys}/ca.pem");
    let files = format!("ssl.certificate.location={keys}/client.pem&ssl.key.location={keys}/client.key");
    let texts = [("ca", "ca.pem"), ("certificate", "client.pem"), ("key", "client.key")]
        .map(|(key, file)| format!("ssl.{key}.pem={}", text(file)))
        .join("&");
    let log = |door: &str, query: String| {
        let url = format!("kafka://{door}/{}?message.timeout.ms=3000&{query}", topics.name("t"));
        KafkaLog::new(&url).unwrap()
    };
    let named = |mechanism: &str, name: &str, password: &str| {
        let keys = format!("sasl.mechanism={mechanism}&sasl.username={name}&sasl.password={password}");
        log(&sasl, format!("security.protocol=sasl_ssl&{ca}&{keys}"))
    };
    let right = [
        log(&tls, format!("security.protocol=ssl&{ca}&{files}")),
        log(&tls, format!("security.protocol=ssl&{texts}")),
        named("PLAIN", "alice", "in%20+%20out"),
        named("SCRAM-SHA-256", "bob", "in%20+%20out"),
        named("SCRAM-SHA-512", "bob", "in%20+%20out"),
    ];
    for (n, log) in right.iter().enumerate() {
        log.append(&topics.name("t"), numbered(n..n + 1)).await.unwrap();
        let mut reader = log.consume(&topics.name("t"), None, Start::Earliest).await.unwrap();
        assert_eq!(values(&read_now(&mut *reader).await), (0..=n).collect());
    }
    let wrong = [
        (log(&tls, format!("security.protocol=ssl&{ca}")), "ssl://"),
        (log(&tls, format!("security.protocol=ssl&{files}")), "certificate verify failed"),
        (named("PLAIN", "alice", "out"), "Invalid username or password"),
        (named("SCRAM-SHA-256", "bob", "out"), "invalid credentials"),
    ];
    for (log, why) in wrong {
        let error = log.append(&topics.name("t"), numbered(9..10)).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error} does not say {why}");
    }
    let mut reader = topics.log("").consume(&topics.name("t"), None, Start::Earliest).await.unwrap();
    assert_eq!(values(&read_now(&mut *reader).await), (0..right.len()).collect());
    topics.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_not_there_is_named() {
    let topics = Topics::new().await;
    let missing = topics.name("missing");
    let error = topics.log("").consume(&missing, Some("g"), Start::Earliest).await.err().unwrap();
    assert!(error.to_string().contains(&missing), "{error}");
    topics.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_goes_where_javas_clients_send_it() {
    let topics = Topics::new().await;
    let (log, topic) = (topics.log(""), topics.name("t"));
    log.append(&topic, numbered(0..10)).await.unwrap();
    let mut kcat = Command::new("kcat")
        .args(["-P", "-b", &topics.broker, "-t", &topic, "-K:", "-X", "topic.partitioner=murmur2_random"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: String = (0..10).map(|n| format!("key{n}:{n}\n")).collect();
    kcat.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(kcat.wait().unwrap().success());
    let mut consumer = log.consume(&topic, None, Start::Earliest).await.unwrap();
    let is = read_now(&mut *consumer).await;
    let places: BTreeSet<_> = is.iter().map(|d| (d.record.key.clone(), d.partition)).collect();
    assert_eq!((is.len(), places.len()), (20, 10), "{places:?}");
    topics.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kcat_reads_what_was_written_and_what_it_writes_is_read() {
    let topics = Topics::new().await;
    let (log, topic) = (topics.log(""), topics.name("t"));
    log.append(&topic, vec![record("k", "7")]).await.unwrap();
    let arguments =
        ["-C", "-b", &topics.broker, "-t", &topic, "-o", "beginning", "-e", "-q", "-f", "%k|%h|%s\n"];
    let output = Command::new("kcat").args(arguments).output().unwrap();
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(line.starts_with("k|ce_id=7,raw=") && line.ends_with("|7\n"), "{line:?}");
    let mut kcat = Command::new("kcat")
        .args(["-P", "-b", &topics.broker, "-t", &topic, "-H", "a=b"])
        .arg("-H")
        // A header name that is not UTF-8.
        .arg(OsStr::from_bytes(b"\xff\xfe=c"))
        .args(["-H", "nothing"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    kcat.stdin.take().unwrap().write_all(b"{\"id\":1}\n").unwrap();
    assert!(kcat.wait().unwrap().success());
    let mut consumer = log.consume(&topic, None, Start::Earliest).await.unwrap();
    let is = read_now(&mut *consumer).await;
    let plain = &is.iter().find(|d| d.record.key.is_none()).unwrap().record;
    assert_eq!(plain.value.as_deref(), Some(&b"{\"id\":1}"[..]));
    let value = bytes::Bytes::from_static(b"b");
    assert_eq!(plain.headers, [("a".to_owned(), Some(value)), ("nothing".to_owned(), None)]);
    topics.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_died_is_replaced() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    let log = KafkaLog::new(&format!("kafka://{}/t", cluster.bootstrap_servers())).unwrap();
    log.append("t", numbered(0..1)).await.unwrap();
    // The broker denies a new producer its id, which is a fatal error for it, and then denies the next one, too.
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::InitProducerId, &[refused; 2]);
    let second = KafkaLog::new(&format!("kafka://{}/t", cluster.bootstrap_servers())).unwrap();
    second.append("t", numbered(1..2)).await.unwrap_err();
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = second.append("t", numbered(2..3)).await {
        assert!(Instant::now() < deadline, "{error:?}");
        tokio::task::yield_now().await;
    }
    second.ready().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large_is_rejected_and_not_tried_again() {
    let topics = Topics::new().await;
    let topic = topics.name("t");
    let large = |bytes| {
        let mut record = record("k", "1");
        record.value = Some(vec![0; bytes].into());
        vec![record]
    };
    // The client's own limits, and the broker's limit for a client whose limit is higher.
    for (parameters, bytes) in
        [("", 1_000_001), ("message.max.bytes=1000", 1_001), ("message.max.bytes=9000000", 2_000_000)]
    {
        let error = Failure::from(topics.log(parameters).append(&topic, large(bytes)).await.unwrap_err());
        assert_eq!(error.kind, FailureKind::TooLarge, "{parameters} {error}");
    }
    topics.log("").append(&topic, large(990_000)).await.unwrap();
    topics.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_that_give_up_share_one_question_to_a_broker_that_is_silent() {
    // Accepts connections and never responds.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let log = KafkaLog::new(&format!("kafka://{}/t", silent.local_addr().unwrap())).unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for _ in 0..50 {
        assert!(timeout(Duration::from_millis(1), log.ready()).await.is_err());
    }
    assert!(tasks() <= before + 1, "{} tasks", tasks() - before);
    assert!(timeout(Duration::from_secs(10), log.ready()).await.unwrap().is_err());
}
