//! Dead letters: undeliverable events, with the reason, in a topic of the log. A log cannot delete, so replaying or
//! dropping a dead letter appends a resolution, marked by a record header that events from outside cannot carry.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
};

use ::event::{EventBuilder, EventBuilderV10};
use backend_log::{Delivered, Log, LogError, Start};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chrono::{SubsecRound, Utc};
use event::Record;
use framework::supervise::panic_message;
use http::Request;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    control::{RESOLUTION, TRUNCATED, UNDELIVERABLE},
    delivery::{Delivery, Failure, deliver},
    event::{Event, Origin, RawRecord, Undecodable},
    sink::{Limited, Sink},
};

/// Event type of a resolution, for people who read the topic; only the header counts.
const RESOLVED: &str = "dev.lambda-architecture.dead-letter.resolved";
/// Attributes that a source adds to an event that becomes a dead letter.
const ERROR_ATTRIBUTES: [&str; 3] = ["knativeerrordest", "knativeerrorcode", "knativeerrordata"];
/// Maximum number of records per read.
const PAGE: usize = 1_000;

/// A dead letter's id: its position in its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeadLetterId {
    /// Partition of the topic.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
}

impl std::fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.partition, self.offset)
    }
}

impl std::str::FromStr for DeadLetterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |text: &str| {
            let (partition, offset) = text.split_once(':')?;
            Some(Self { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
        };
        parse(text).ok_or_else(|| format!("`{text}` is no id like 3:14, as `dead-letters list` shows them"))
    }
}

/// An event that was not delivered.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its id.
    pub id: DeadLetterId,
    /// When it was appended, milliseconds since 1970 UTC.
    pub time_ms: i64,
    /// The event, with extensions that give the reason.
    pub event: Event,
    /// The record's key, which determines its partition.
    key: Option<Bytes>,
    content: Content,
}

/// How much a dead letter contains of what was to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    /// The whole event.
    Event,
    /// A record that could not be made an event or sent.
    RawRecord,
    /// The beginning of the data, whose original size this is, bytes.
    Truncated(String),
    /// A record of the topic that cannot be read; the reason.
    Unreadable(String),
}

/// The value of the header that resolves a dead letter.
#[derive(Serialize, Deserialize)]
struct Resolution {
    partition: i32,
    offset: i64,
    /// `replayed` or `dropped`.
    how: String,
}

/// Why a dead letter could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The function did not accept it.
    #[error("{}", .0.why)]
    Failed(Box<Failure>),
    /// No event can be made of it.
    #[error("it cannot be sent")]
    Undecodable(#[from] Undecodable),
    /// It cannot be sent; the reason.
    #[error("it cannot be sent: {0}")]
    Unsendable(String),
    /// It names a function that no source sends to.
    #[error("it is for `{0}`, to which no source leads")]
    UnknownFunction(String),
    /// The log does not accept the resolution.
    #[error("the log cannot be written now")]
    Log(#[from] domain::Failure),
}

impl DeadLetter {
    /// The function that it was for, from the URL: `http://NAME.NAMESPACE…` in a cluster, `…/function/NAME` behind a
    /// gateway. Empty if it names none.
    #[must_use]
    pub fn function(&self) -> &str {
        let destination = self.event.attribute("knativeerrordest").unwrap_or_default();
        let url = destination.rsplit("://").next().unwrap_or_default();
        let url = url.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let name = match url.rsplit_once("/function/") {
            Some((_, name)) => name,
            None => url.split(['.', '/', ':']).next().unwrap_or_default(),
        };
        let is_name = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if is_name { name } else { "" }
    }

    /// The last answer's status; `None` if there was no answer.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.event.attribute("knativeerrorcode")
    }

    /// The last answer's body, or its beginning.
    #[must_use]
    pub fn reason(&self) -> String {
        let data =
            self.event.attribute("knativeerrordata").and_then(|data| BASE64_STANDARD.decode(data).ok());
        data.map_or_else(
            || "there was no answer".to_owned(),
            |data| String::from_utf8_lossy(&data).into_owned(),
        )
    }

    /// Sends the original event again, provided that its function is one of `functions`, and resolves the dead letter once
    /// the function has accepted it. Not cancel-safe: dropped halfway, the event may be delivered and the letter open.
    pub async fn replay(
        &self,
        log: &dyn Log,
        topic: &str,
        sink: &dyn Sink,
        functions: &BTreeSet<String>,
    ) -> Result<(), DeadLetterError> {
        let function = self.function();
        if !functions.contains(function) {
            return Err(DeadLetterError::UnknownFunction(function.to_owned()));
        }
        let request = catch_unwind(AssertUnwindSafe(|| self.request()))
            .unwrap_or_else(|panic| Err(DeadLetterError::Unsendable(panic_message(&*panic))))?;
        // An operator is there to try again; a few attempts bridge a restart.
        let delivery = Delivery { retry: 3, ..Delivery::KAFKA_SOURCE };
        deliver(&Limited(sink), function, request, &delivery, |_| {})
            .await
            .map_err(|failure| DeadLetterError::Failed(Box::new(failure)))?;
        self.resolve(log, topic, "replayed").await
    }

    /// The request that its source would send.
    fn request(&self) -> Result<Request<Bytes>, DeadLetterError> {
        let mut event = match &self.content {
            Content::Event => self.event.clone(),
            Content::RawRecord => {
                let raw = RawRecord::from_event(&self.event).map_err(DeadLetterError::Unsendable)?;
                Event::of_record(&raw.delivered, raw.origin())?
            }
            Content::Truncated(bytes) => {
                return Err(DeadLetterError::Unsendable(format!(
                    "it was too large for the log, which holds the beginning of its {bytes} bytes"
                )));
            }
            Content::Unreadable(why) => return Err(DeadLetterError::Unsendable(why.clone())),
        };
        event.attributes.retain(|(name, _)| !ERROR_ATTRIBUTES.contains(&name.as_str()));
        Ok(event.to_request("default")?)
    }

    /// Resolves it without sending the event.
    pub async fn discard(&self, log: &dyn Log, topic: &str) -> Result<(), DeadLetterError> {
        self.resolve(log, topic, "dropped").await
    }

    async fn resolve(&self, log: &dyn Log, topic: &str, how: &str) -> Result<(), DeadLetterError> {
        let builder = EventBuilderV10::new()
            .id(Uuid::now_v7())
            .ty(RESOLVED)
            .source("/dead-letters")
            .subject(self.id.to_string())
            .time(Utc::now().trunc_subsecs(3))
            .data("application/json", serde_json::json!({ "how": how }));
        let event = Event::try_from(builder).map_err(|why| DeadLetterError::Unsendable(why.to_string()))?;
        let DeadLetterId { partition, offset } = self.id;
        let resolution = serde_json::json!(Resolution { partition, offset, how: how.to_owned() });
        let mut record = event.to_record();
        record.push_header(RESOLUTION, resolution.to_string());
        // The same key means the same partition, so that it is read after the dead letter.
        record.key.clone_from(&self.key);
        Ok(log.append(topic, vec![record]).await?)
    }
}

/// The open dead letters of a topic.
#[derive(Debug, Default)]
pub struct DeadLetters {
    open: BTreeMap<DeadLetterId, DeadLetter>,
    /// Resolutions that were read before their dead letters, because those are in another partition.
    early: BTreeSet<DeadLetterId>,
}

impl DeadLetters {
    /// All open dead letters, oldest first.
    pub async fn read(log: &dyn Log, topic: &str) -> Result<Vec<DeadLetter>, LogError> {
        log.create(topic).await?;
        let mut consumer = log.consume(topic, None, Start::Earliest).await?;
        let mut letters = Self::default();
        loop {
            let records = consumer.poll_now(PAGE).await?;
            if records.is_empty() {
                break;
            }
            for delivered in records {
                letters.take(&delivered, topic);
            }
        }
        let mut open: Vec<_> = letters.open.into_values().collect();
        open.sort_by_key(|letter| letter.time_ms);
        Ok(open)
    }

    /// Number of open dead letters.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Applies the next record of the topic. Returns the dead letter that it opens, if any.
    pub fn take(&mut self, delivered: &Delivered, topic: &str) -> Option<&DeadLetter> {
        let Delivered { partition, offset, time_ms, record } = delivered;
        let id = DeadLetterId { partition: *partition, offset: *offset };
        if let Some(resolution) = record.header(RESOLUTION) {
            match serde_json::from_slice(resolution) {
                Ok(Resolution { partition, offset, .. }) => {
                    let resolved = DeadLetterId { partition, offset };
                    if self.open.remove(&resolved).is_none() {
                        self.early.insert(resolved);
                    }
                }
                Err(why) => tracing::error!(at = %id, %why, "a resolution of a dead letter cannot be read"),
            }
            return None;
        }
        if self.early.remove(&id) {
            return None;
        }
        let (event, content) = read(delivered, topic);
        let letter = DeadLetter { id, time_ms: *time_ms, event, key: record.key.clone(), content };
        Some(self.open.entry(id).or_insert(letter))
    }
}

/// The event in a record of the topic, with the position of the original record. If the record is no event, a wrapper.
fn read(delivered: &Delivered, topic: &str) -> (Event, Content) {
    let origin = Origin { namespace: "default", name: "dead-letter", topic };
    let event = catch_unwind(AssertUnwindSafe(|| {
        Event::from_record(delivered, origin).map_err(|why| why.to_string())
    }));
    match event.unwrap_or_else(|panic| Err(panic_message(&*panic))) {
        Ok(event) => (event, content(&delivered.record)),
        Err(why) => (Event::undeliverable(delivered, origin, &why), Content::Unreadable(why)),
    }
}

fn content(record: &Record) -> Content {
    match record.header(TRUNCATED) {
        Some(bytes) => Content::Truncated(String::from_utf8_lossy(bytes).into_owned()),
        None if record.header(UNDELIVERABLE).is_some() => Content::RawRecord,
        None => Content::Event,
    }
}
