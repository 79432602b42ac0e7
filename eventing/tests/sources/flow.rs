//! Concurrency, commits, and the state after a crash.

use std::{collections::BTreeSet, sync::atomic::Ordering::SeqCst, time::Duration};

use bytes::Bytes;
use event::Record;
use eventing::dead_letters::DeadLetters;

use crate::harness::{Function, Shared, event, eventually, run, source, status, value};

const KEYS: [&str; 4] = ["a", "b", "c", "d"];

fn filled(events: usize) -> Shared {
    let log = Shared::default();
    for n in 0..events {
        log.0.put("user", event(&n.to_string(), KEYS[n % 4]));
    }
    log
}

/// A log with events of 8 KiB, which share their memory.
fn filled_with_large(events: usize) -> Shared {
    let (log, value) = (Shared::default(), Bytes::from(vec![b' '; 8 * 1024]));
    for n in 0..events {
        let record = event(&n.to_string(), KEYS[n % 4]);
        log.0.put("user", Record { value: Some(value.clone()), ..record });
    }
    log
}

#[tokio::test(start_paused = true)]
async fn an_ordered_source_keeps_one_of_each_partition_under_way() {
    let (log, store) = (filled(40), Function::new(Duration::from_millis(10), |_| status(200)));
    let running = run(source("log-to-store"), &log, &store);
    eventually("all arrived", || running.progress.delivered.load(SeqCst) == 40).await;
    running.end().await;
    assert_eq!((store.most_of_a_partition.load(SeqCst), store.most.load(SeqCst)), (1, 4));
    for key in KEYS {
        let requests = store.requests.lock().unwrap();
        let of_key = requests.iter().filter(|(_, r)| value(r, "ce-partitionkey") == key);
        let ids: Vec<usize> = of_key.map(|(_, r)| value(r, "ce-id").parse().unwrap()).collect();
        assert!(ids.is_sorted() && ids.len() == 10, "{ids:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_ordered_source_works_on_all_partitions_of_a_backlog_that_comes_one_after_the_other() {
    let (log, store) = (Shared::default(), Function::new(Duration::from_millis(10), |_| status(200)));
    for key in KEYS {
        (0..3_000).for_each(|n| log.0.put("user", event(&n.to_string(), key)));
    }
    let running = run(source("log-to-store"), &log, &store);
    eventually("one of each is under way", || store.most.load(SeqCst) == KEYS.len()).await;
    let first = store.heard("ce-partitionkey").iter().filter(|key| *key == KEYS[0]).count();
    assert!(first < 1_000, "the first partition had {first} before the last one's turn came");
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_waits_does_not_stop_the_others() {
    let answer = |r: &_| status(if value(r, "ce-partitionkey") == "a" { 503 } else { 200 });
    let (log, store) = (filled(400), Function::new(Duration::ZERO, answer));
    let running = run(source("log-to-store"), &log, &store);
    eventually("the others arrived", || running.progress.delivered.load(SeqCst) == 300).await;
    running.end().await;
    let ids: BTreeSet<_> =
        store.heard("ce-id").into_iter().filter(|id| id.parse::<u32>().unwrap() % 4 == 0).collect();
    assert_eq!(ids, ["0".to_owned()].into());
}

#[tokio::test(start_paused = true)]
async fn an_unordered_source_has_fifty_a_consumer_under_way() {
    let (log, count) = (filled(1_000), Function::new(Duration::from_millis(10), |_| status(200)));
    let running = run(source("log-to-count"), &log, &count);
    eventually("all arrived", || running.progress.delivered.load(SeqCst) == 1_000).await;
    running.end().await;
    assert_eq!(count.most.load(SeqCst), 200);
}

#[tokio::test(start_paused = true)]
async fn a_poison_event_does_not_stop_those_behind_it() {
    let answer = |r: &_| status(if value(r, "ce-id") == "4" { 503 } else { 200 });
    let (log, count) = (filled(800), Function::new(Duration::ZERO, answer));
    let running = run(source("log-to-count"), &log, &count);
    eventually("the others arrived", || running.progress.delivered.load(SeqCst) == 799).await;
    assert_eq!(running.progress.dead.load(SeqCst), 0);
    eventually("what can be is committed", || log.0.committed().len() == 4).await;
    let first = log.0.records("user").remove(4);
    assert_eq!(log.0.committed()[&first.partition], first.offset);
    assert_eq!(running.progress.lag(&log.0.kept("user"), &log.0.committed()), 199);
    eventually("it is in the dead letter", || running.progress.dead.load(SeqCst) == 1).await;
    running.end().await;
    assert_eq!(log.0.committed(), log.0.ends("user"));
}

#[tokio::test(start_paused = true)]
async fn a_crash_loses_no_event_and_repeats_only_what_was_not_committed() {
    let (log, count) = (filled(3_000), Function::new(Duration::from_millis(500), |_| status(200)));
    let running = run(source("log-to-count"), &log, &count);
    eventually("something is committed", || !log.0.committed().is_empty()).await;
    running.task.abort();
    let _ = running.task.await;
    let committed: i64 = log.0.committed().values().sum();
    assert!((1..3_000).contains(&committed), "{committed}");

    let again = Function::new(Duration::ZERO, |_| status(200));
    let running = run(source("log-to-count"), &log, &again);
    eventually("all is committed", || log.0.committed() == log.0.ends("user")).await;
    running.end().await;
    let second = again.heard("ce-id");
    assert_eq!(second.len() as i64, 3_000 - committed);
    let all: BTreeSet<_> = count.heard("ce-id").into_iter().chain(second).collect();
    assert_eq!(all.len(), 3_000);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_source_commits_what_ended() {
    let (log, count) = (filled(10), Function::new(Duration::from_secs(1), |_| status(200)));
    let running = run(source("log-to-count"), &log, &count);
    eventually("all are under way", || count.requests.lock().unwrap().len() == 10).await;
    running.end().await;
    assert_eq!(log.0.committed(), log.0.ends("user"));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_committed_before_its_dead_letter_is_written() {
    let log = Shared::default();
    log.0.put("user", event("bad", "a"));
    let count =
        Function::new(Duration::ZERO, |r: &_| status(if value(r, "ce-id") == "bad" { 400 } else { 200 }));
    log.0.broken.store(true, SeqCst);
    let running = run(source("log-to-count"), &log, &count);
    eventually("it was rejected", || count.requests.lock().unwrap().len() == 1).await;
    let [bad, other] = ["a", "b"].map(|key| i32::from(key.as_bytes()[0]) % 4);
    for n in 0..3 {
        log.0.put("user", event(&n.to_string(), "b"));
        // A commit of the rejected record would be visible at the latest when this one is committed.
        eventually("another one is committed", || log.0.committed().get(&other) == Some(&(n + 1))).await;
    }
    assert_eq!(log.0.committed().get(&bad).copied().unwrap_or(0), 0);
    log.0.broken.store(false, SeqCst);
    eventually("it is committed", || log.0.committed() == log.0.ends("user")).await;
    assert_eq!((log.0.records("user-dead-letter").len(), count.requests.lock().unwrap().len()), (1, 4));
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_too_large_is_cut_and_does_not_block_its_partition() {
    let (log, store) = (Shared::default(), Function::new(Duration::ZERO, |_| status(400)));
    let value = Some(Bytes::from(vec![b' '; 100_000]));
    log.0.put("user", Record { value, ..event("large", "a") });
    log.0.put("user", event("small", "a"));
    log.0.largest.store(10_000, SeqCst);
    let running = run(source("log-to-store"), &log, &store);
    eventually("both are committed", || log.0.committed() == log.0.ends("user")).await;
    running.end().await;
    let letters = DeadLetters::read(&log, "user-dead-letter").await.unwrap();
    assert_eq!((letters.len(), letters[0].event.attribute("id")), (2, Some("large")));
    assert!((1_024..10_000).contains(&letters[0].event.data.len()));
    let (functions, willing) = (["store".to_owned()].into(), Function::new(Duration::ZERO, |_| status(200)));
    let refused = letters[0].replay(&log, "user-dead-letter", &*willing, &functions).await.unwrap_err();
    assert!(refused.to_string().contains("100000 bytes"), "{refused}");
    letters[1].replay(&log, "user-dead-letter", &*willing, &functions).await.unwrap();
    assert_eq!(willing.heard("ce-id"), ["small"]);
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_failed_is_replaced_and_no_record_is_left_out() {
    let (log, count) = (filled(2_000), Function::new(Duration::ZERO, |_| status(200)));
    log.0.failing.store(3, SeqCst);
    let running = run(source("log-to-count"), &log, &count);
    eventually("all is committed", || log.0.committed() == log.0.ends("user")).await;
    let ids: BTreeSet<_> = count.heard("ce-id").into_iter().collect();
    assert_eq!(ids.len(), 2_000);
    assert_eq!((running.progress.health.restarts(), running.progress.health.last_error()), (0, None));
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_panics_is_started_again_and_told_of() {
    let (log, count) = (filled(2_000), Function::new(Duration::ZERO, |_| status(200)));
    log.0.panicking.store(2, SeqCst);
    let running = run(source("log-to-count"), &log, &count);
    eventually("all is committed", || log.0.committed() == log.0.ends("user")).await;
    let ids: BTreeSet<_> = count.heard("ce-id").into_iter().collect();
    assert_eq!((ids.len(), running.progress.health.restarts()), (2_000, 2));
    assert_eq!(running.progress.health.last_error().as_deref(), Some("panicked: the log panics"));
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_backlog_is_not_read_into_memory() {
    let (log, count) =
        (filled_with_large(10_000), Function::new(Duration::from_secs(3_600), |_| status(200)));
    let running = run(source("log-to-count"), &log, &count);
    eventually("as many as may be are under way", || count.most.load(SeqCst) == 200).await;
    tokio::time::advance(Duration::from_secs(4)).await;
    assert!(log.0.given.load(SeqCst) <= 4_000, "{}", log.0.given.load(SeqCst));
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_finished_of_a_partition_that_others_want_is_committed_and_no_more_is_sent() {
    let (log, store) = (filled(4_000), Function::new(Duration::from_millis(10), |_| status(200)));
    let running = run(source("log-to-store"), &log, &store);
    eventually("many arrived", || running.progress.delivered.load(SeqCst) >= 80).await;
    let wanted = log.0.records("user")[0].partition;
    log.0.want(wanted);
    eventually("it is given up", || log.0.given_up.lock().unwrap().contains_key(&wanted)).await;
    let finished = log.0.given_up.lock().unwrap()[&wanted];
    let sent = |key: &str| {
        let requests = store.requests.lock().unwrap();
        requests.iter().filter(|(_, request)| value(request, "ce-partitionkey") == key).count() as i64
    };
    assert!((20..1_000).contains(&finished), "{finished}");
    // At most one event of a partition is in flight.
    assert!((finished..=finished + 1).contains(&sent("a")), "{} of {finished}", sent("a"));
    let before = sent("a");
    eventually("the others arrived", || KEYS[1..].iter().all(|key| sent(key) == 1_000)).await;
    assert_eq!(sent("a"), before);
    // The rest of the partition counts as the group's lag, except what the partition's new owner has committed.
    let others = [(wanted, finished + 300)].into();
    eventually("all else is finished", || {
        running.progress.lag(&log.0.kept("user"), &others) == 700 - finished
    })
    .await;
    running.end().await;
    assert_eq!(log.0.committed()[&wanted], finished, "nothing more is committed of it");
}

#[tokio::test(start_paused = true)]
async fn a_source_whose_function_is_stuck_goes_on_serving_its_group() {
    let (log, count) =
        (filled_with_large(10_000), Function::new(Duration::from_secs(36_000), |_| status(200)));
    let running = run(source("log-to-count"), &log, &count);
    eventually("it takes no more", || log.0.rests.load(SeqCst) > 0).await;
    let given = log.0.given.load(SeqCst);
    log.0.want(2);
    eventually("it gives up what others want", || log.0.given_up.lock().unwrap().contains_key(&2)).await;
    assert_eq!(log.0.given_up.lock().unwrap()[&2], 0);
    assert!(log.0.given.load(SeqCst) <= given + 500);
    running.stop.cancel();
}

#[test]
fn lag_is_of_what_is_kept_and_not_finished_by_anybody() {
    let progress = eventing::progress::Progress::default();
    let kept = [(0, 100..150), (1, 0..10), (2, 5..5)].into();
    assert_eq!(progress.lag(&kept, &[].into()), 60);
    assert_eq!(progress.lag(&kept, &[(0, 120), (1, 10), (2, 9)].into()), 30);
    assert_eq!(progress.lag(&kept, &[(0, 20)].into()), 60, "what was deleted cannot be delivered");
}
