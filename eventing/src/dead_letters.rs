//! Dead letters: events in a topic of the log with why they are there. Nothing is ever deleted from a log, so that a
//! letter that was replayed or dropped is followed by an event that says so.

use std::collections::BTreeMap;

use backend_log::{Delivered, Log, LogError, Start};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use uuid::Uuid;

use crate::{
    delivery::{Delivery, Failure, deliver},
    event::{Event, Origin, Undecodable},
    sink::Sink,
};

/// Type of the event that says that a letter was taken care of.
const RESOLVED: &str = "dev.lambda-architecture.dead-letter.resolved";
/// Records of one read.
const PAGE: usize = 1_000;

/// A letter's name: where it lies in its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LetterId {
    /// Partition of the dead letter's topic.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
}

impl std::fmt::Display for LetterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.partition, self.offset)
    }
}

impl std::str::FromStr for LetterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |text: &str| {
            let (partition, offset) = text.split_once(':')?;
            Some(Self { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
        };
        parse(text)
            .ok_or_else(|| format!("`{text}` is no letter like 3:14, as `dead-letters list` shows them"))
    }
}

/// An event that never arrived.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Its name.
    pub id: LetterId,
    /// When it came here, milliseconds since 1970 UTC.
    pub time_ms: i64,
    /// The event with the extensions that say why.
    pub event: Event,
}

/// Why a letter could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// The function did not take it.
    #[error("{}", .0.why)]
    Failed(Failure),
    /// It cannot be sent at all.
    #[error("it cannot be sent")]
    Undecodable(#[from] Undecodable),
    /// The log cannot remember it now.
    #[error("the log cannot be written now")]
    Log(#[from] LogError),
}

impl Letter {
    /// The function that it was for.
    #[must_use]
    pub fn function(&self) -> &str {
        let destination = self.event.attribute("knativeerrordest").unwrap_or_default();
        let host = destination.rsplit("://").next().unwrap_or_default();
        host.split(['.', '/', ':']).next().unwrap_or_default()
    }

    /// The last answer's status; none when there was no answer.
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

    /// Sends the event again as it was; it is resolved once it arrived.
    pub async fn replay(&self, log: &dyn Log, topic: &str, sink: &dyn Sink) -> Result<(), LetterError> {
        let mut event = self.event.clone();
        event.attributes.retain(|(name, _)| !name.starts_with("knativeerror") && !name.starts_with("kne"));
        let request = event.to_request("default")?;
        // Whoever repairs is there to try again; a few tries bridge a restart.
        let delivery = Delivery { retry: 3, ..Delivery::KAFKA_SOURCE };
        deliver(sink, self.function(), request, &delivery, || {}).await.map_err(LetterError::Failed)?;
        self.resolve(log, topic, "replayed").await
    }

    /// Remembers that it was dropped.
    pub async fn discard(&self, log: &dyn Log, topic: &str) -> Result<(), LetterError> {
        self.resolve(log, topic, "dropped").await
    }

    async fn resolve(&self, log: &dyn Log, topic: &str, how: &str) -> Result<(), LetterError> {
        let mut attributes = vec![
            ("specversion".to_owned(), "1.0".to_owned()),
            ("id".to_owned(), Uuid::now_v7().to_string()),
            ("type".to_owned(), RESOLVED.to_owned()),
            ("source".to_owned(), "/dead-letters".to_owned()),
            ("subject".to_owned(), self.id.to_string()),
            ("time".to_owned(), Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)),
        ];
        // In the letter's own partition, so that it is read after it.
        let key = self.event.attribute("partitionkey").map(str::to_owned);
        attributes.extend(key.map(|key| ("partitionkey".to_owned(), key)));
        let data = serde_json::json!({ "how": how }).to_string();
        let event =
            Event { attributes, content_type: Some("application/json".to_owned()), data: Bytes::from(data) };
        Ok(log.append(topic, vec![event.to_record()]).await?)
    }
}

/// The letters of a topic that nobody took care of yet.
#[derive(Debug, Default)]
pub struct Letters {
    open: BTreeMap<LetterId, Letter>,
    /// Resolutions that were read before their letters, which lie in another partition.
    early: Vec<LetterId>,
}

impl Letters {
    /// All letters as of now, oldest first.
    pub async fn read(log: &dyn Log, topic: &str) -> Result<Vec<Letter>, LogError> {
        log.create(topic).await?;
        let mut consumer = log.consume(topic, None, Start::Earliest).await?;
        let mut letters = Self::default();
        loop {
            let batch = consumer.poll_now(PAGE).await?;
            if batch.records.is_empty() {
                break;
            }
            for delivered in batch.records {
                letters.take(&delivered, topic);
            }
        }
        let mut open: Vec<_> = letters.open.into_values().collect();
        open.sort_by_key(|letter| letter.time_ms);
        Ok(open)
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes in the next record of the topic; answers the letter that it is.
    pub fn take(&mut self, delivered: &Delivered, topic: &str) -> Option<&Letter> {
        let id = LetterId { partition: delivered.partition, offset: delivered.offset };
        let origin = Origin { namespace: "default", name: "dead-letter", topic };
        let event = match Event::of_record(delivered, origin) {
            Ok(event) => event,
            Err(why) => {
                tracing::error!(letter = %id, %why, "a dead letter cannot be read");
                return None;
            }
        };
        if event.attribute("type") == Some(RESOLVED) {
            let resolved: Option<LetterId> =
                event.attribute("subject").and_then(|subject| subject.parse().ok());
            if let Some(resolved) = resolved
                && self.open.remove(&resolved).is_none()
            {
                self.early.push(resolved);
            }
            return None;
        }
        if self.early.contains(&id) {
            return None;
        }
        Some(self.open.entry(id).or_insert(Letter { id, time_ms: delivered.time_ms, event }))
    }
}
