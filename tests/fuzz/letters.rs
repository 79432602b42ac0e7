//! Whatever stands in the topic of dead letters is shown, replayed as its source would send it, or kept; and dropped.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use backend_log::Appender;
use bytes::Bytes;
use event::{Event, Received};
use eventing::{
    dead_letters::{DeadLetter, DeadLetterId, DeadLetters},
    sink::{Sink, SinkError},
};
use framework::router::FUNCTION;
use http::{Request, Response};
use memory::MemoryLog;

use crate::{engine::fuzz, events::ORIGIN, message::Message, runtime};

const TOPIC: &str = "user-dead-letter";

/// Accepts everything.
#[derive(Default)]
struct Accepting(Mutex<Vec<Request<Bytes>>>);

#[async_trait]
impl Sink for Accepting {
    async fn send(&self, function: &str, request: Request<Bytes>) -> Result<Response<Bytes>, SinkError> {
        self.0.lock().unwrap().push(request);
        let answer = Response::builder().status(200).header(FUNCTION, function);
        Ok(answer.body(Bytes::new()).unwrap())
    }
}

/// Replays a letter; returns what was sent and why nothing was.
async fn replay(letter: &DeadLetter, log: &MemoryLog) -> Result<Request<Bytes>, String> {
    let functions = BTreeSet::from(["count".to_owned(), "store".to_owned()]);
    let sink = Accepting::default();
    let replayed = letter.replay(log, TOPIC, &sink, &functions).await;
    let mut sent = sink.0.into_inner().unwrap();
    assert_eq!(sent.len(), usize::from(replayed.is_ok()), "sent once if it was replayed");
    replayed.map_err(|why| format!("{}: {why}", letter.function()))?;
    Ok(sent.remove(0))
}

async fn open(log: &MemoryLog) -> Vec<DeadLetter> {
    DeadLetters::read(log, TOPIC).await.unwrap()
}

async fn check(input: &[u8]) -> String {
    let clock: memory::Clock = Arc::new(|| 1_700_000_000_000);
    let delivered = Message::parse(input).delivered();
    // As anybody may have written it into the topic.
    let log = MemoryLog::new(1, clock.clone());
    log.append(TOPIC, vec![delivered.record.clone()]).await.unwrap();
    let letters = open(&log).await;
    assert!(letters.len() <= 1);
    let mut outcome = "resolved".to_owned();
    if let Some(letter) = letters.first() {
        let id: DeadLetterId = letter.id.to_string().parse().unwrap();
        assert_eq!(id, letter.id);
        let _ = (letter.code(), letter.reason(), letter.event.to_structured());
        assert!(letter.function().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
        outcome = match replay(letter, &log).await {
            Ok(sent) => match Received::from_http(sent.headers(), sent.body()) {
                Ok(received) => {
                    assert_eq!((received.is_batch, received.events.len()), (false, 1));
                    "replayed".to_owned()
                }
                Err(why) => format!("replayed and refused {why}"),
            },
            Err(why) => {
                assert_eq!(open(&log).await.len(), 1, "a letter that was not sent stays");
                letter.discard(&log, TOPIC).await.unwrap();
                why
            }
        };
        assert!(open(&log).await.is_empty(), "what is resolved is gone");
    }
    // As the source writes it that cannot send the record.
    let log = MemoryLog::new(1, clock);
    let mut letter = Event::undeliverable(&delivered, ORIGIN, "why");
    letter.set("knativeerrordest", "http://count.default.svc.cluster.local");
    let mut record = letter.to_record();
    record.push_header("lambda-architecture-undeliverable", "");
    log.append(TOPIC, vec![record]).await.unwrap();
    let letters = open(&log).await;
    assert_eq!((letters.len(), letters[0].function()), (1, "count"));
    let sent = Event::of_record(&delivered, ORIGIN).and_then(|mut event| {
        event.attributes.retain(|(name, _)| {
            !["knativeerrordest", "knativeerrorcode", "knativeerrordata"].contains(&name.as_str())
        });
        event.to_request("default")
    });
    let is_whole = letter.attribute("recordtruncated").is_none();
    let is_timed = letter.attribute("time").is_some();
    match (replay(&letters[0], &log).await, sent) {
        (Ok(replayed), Ok(sent)) => {
            let headers = |request: &Request<Bytes>| {
                let mut headers = request.headers().clone();
                if !is_timed {
                    headers.remove("ce-time");
                }
                headers
            };
            assert_eq!((headers(&replayed), replayed.body()), (headers(&sent), sent.body()));
        }
        (Ok(_), Err(why)) => panic!("replayed, although {why}"),
        (Err(why), Ok(_)) => assert!(!is_whole, "{why}"),
        (Err(_), Err(_)) => {}
    }
    outcome
}

#[test]
fn a_dead_letter_is_replayed_as_its_source_would_send_it_or_stays() {
    let runtime = runtime();
    fuzz("dead_letter", |input| runtime.block_on(check(input)));
}
