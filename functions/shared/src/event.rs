//! Events that carry users: the crate `event` reads and writes them, this is where their data becomes a user and their
//! faults an answer.

use bytes::Bytes;
use chrono::SubsecRound;
pub use event::{BATCHED, Event, InvalidEvent, STRUCTURED, is_json, media_type};
use event::{EventBuilder, EventBuilderV10};
use http::{HeaderMap, StatusCode};
use uuid::Uuid;

use crate::{
    error::{Error, Rejection},
    record::Record,
    user::User,
};

/// Type of the events that `POST /user` becomes.
pub const INGESTED: &str = "dev.lambda-architecture.user.ingested";

impl From<InvalidEvent> for Rejection {
    fn from(invalid: InvalidEvent) -> Self {
        let status = match invalid.is_unsupported_media_type {
            true => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            false => StatusCode::BAD_REQUEST,
        };
        Self::new(status, invalid.why)
    }
}

/// Reads the event, or the batch of events, that a request carries or stands for. Their data is not looked at.
pub fn from_http(headers: &HeaderMap, body: &Bytes) -> Result<Vec<Event>, Error> {
    read(headers, body, Ok)
}

/// The users that the events of a request carry, which came through the log.
pub fn users_from_http(headers: &HeaderMap, body: &Bytes) -> Result<Vec<User>, Error> {
    read(headers, body, |event| user(&event))
}

/// The events of a client's request and their users. Each of them may be acknowledged: it will reach every function.
pub fn admitted_from_http(headers: &HeaderMap, body: &Bytes) -> Result<Vec<(Event, User)>, Error> {
    read(headers, body, |event| {
        event.admit()?;
        let user = user(&event)?;
        Ok((event, user))
    })
}

/// Reads each event further; what is wrong with one of a batch names its index, and the first one counts.
fn read<T>(
    headers: &HeaderMap,
    body: &Bytes,
    each: impl Fn(Event) -> Result<T, Rejection>,
) -> Result<Vec<T>, Error> {
    let received = event::Received::from_http(headers, body).map_err(Rejection::from)?;
    let count = received.events.len();
    // Where reading ended early, there are more events than those that were read.
    let of = if received.failure.is_some() { count + 2 } else { count };
    let items = received.events.into_iter().enumerate();
    let read: Vec<T> = items
        .map(|(index, event)| each(event).map_err(|rejection| at_index(rejection, index, of)))
        .collect::<Result<_, _>>()?;
    match received.failure {
        Some(invalid) => Err(at_index(invalid.into(), count, of).into()),
        None => Ok(read),
    }
}

/// The user that an event's data is.
pub fn user(event: &Event) -> Result<User, Rejection> {
    if let Some(kind) = event.content_type.as_deref().filter(|kind| !is_json(kind)) {
        return Err(unsupported(format!("the event's data must be JSON (`application/json`), not `{kind}`")));
    }
    if event.data.is_empty() {
        return Err(Rejection::bad_data("the event has no data; its data must be a user"));
    }
    User::from_json(&event.data)
}

/// Says in the detail which of several events it is about.
#[must_use]
pub fn at_index(mut rejection: Rejection, index: usize, of: usize) -> Rejection {
    if of > 1 {
        rejection.detail = format!("event {index} of the batch: {}", rejection.detail);
    }
    rejection
}

/// The event that a plain `POST /user` becomes.
pub fn ingested(user: &User, headers: &HeaderMap) -> Result<Event, Rejection> {
    let id = user.id.to_string();
    let builder = EventBuilderV10::new()
        .id(Uuid::now_v7())
        .source("/ingest")
        .ty(INGESTED)
        .subject(&id)
        .time(chrono::Utc::now().trunc_subsecs(3))
        .extension("partitionkey", id);
    let mut event = Event::try_from(builder)?;
    event.content_type = Some("application/json".to_owned());
    event.carry_trace(headers);
    Ok(event)
}

/// The record of an event whose data is the user, in CloudEvents' Kafka binary mode; its key is the user's id.
#[must_use]
pub fn to_record(event: &Event, user: &User) -> Record {
    let id = user.id.to_string();
    let mut event = Event { data: Bytes::from(user.to_json()), ..event.clone() };
    if event.attribute("partitionkey").is_none() {
        event.set("partitionkey", id.clone());
    }
    event.content_type.get_or_insert_with(|| "application/json".to_owned());
    Record { key: Some(Bytes::from(id)), ..event.to_record() }
}

/// A 415.
pub fn unsupported(detail: impl Into<String>) -> Rejection {
    Rejection::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
}
