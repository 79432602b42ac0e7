//! Events whose data is a user. The crate `event` does the encoding; this module maps data to users and errors to HTTP.

use bytes::Bytes;
use chrono::SubsecRound;
use domain::{InvalidUser, User};
use event::{Event, EventBuilder, EventBuilderV10, InvalidEvent, Record, is_json, without_bom};
use http::{HeaderMap, StatusCode};
use uuid::Uuid;

use crate::error::{Error, Rejection};

/// Type of the events that `POST /user` creates.
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

impl From<InvalidUser> for Rejection {
    fn from(invalid: InvalidUser) -> Self {
        Self::bad_data(invalid.to_string())
    }
}

/// Reads the events that a request carries or stands for. Their data is not parsed.
pub fn from_http(headers: &HeaderMap, body: &Bytes) -> Result<Vec<Event>, Error> {
    read(headers, body, Ok)
}

/// The users in the events of a request that came through the log.
pub fn users_from_http(headers: &HeaderMap, body: &Bytes) -> Result<Vec<User>, Error> {
    read(headers, body, |event| user(&event))
}

/// The events of a client's request with their users. All of them are admissible, so that each reaches every function
/// once acknowledged.
pub fn admitted_from_http(headers: &HeaderMap, body: &Bytes) -> Result<Vec<(Event, User)>, Error> {
    read(headers, body, |event| {
        event.admit()?;
        let user = user(&event)?;
        Ok((event, user))
    })
}

/// Maps each event. The first error wins, and names its index if there are several events.
fn read<T>(
    headers: &HeaderMap,
    body: &Bytes,
    each: impl Fn(Event) -> Result<T, Rejection>,
) -> Result<Vec<T>, Error> {
    let received = event::Received::from_http(headers, body).map_err(Rejection::from)?;
    let count = received.events.len();
    // If reading stopped early, there are more events than were read.
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

/// The user in an event's data.
pub fn user(event: &Event) -> Result<User, Rejection> {
    if let Some(kind) = event.content_type.as_deref().filter(|kind| !is_json(kind)) {
        return Err(unsupported(format!("the event's data must be JSON (`application/json`), not `{kind}`")));
    }
    if event.data.is_empty() {
        return Err(Rejection::bad_data("the event has no data; its data must be a user"));
    }
    user_from_json(&event.data)
}

/// The user in a JSON object, with or without a byte order mark.
pub fn user_from_json(json: &[u8]) -> Result<User, Rejection> {
    Ok(User::from_json(without_bom(json))?)
}

/// Adds to the detail which of several events failed.
#[must_use]
pub fn at_index(mut rejection: Rejection, index: usize, of: usize) -> Rejection {
    if of > 1 {
        rejection.detail = format!("event {index} of the batch: {}", rejection.detail);
    }
    rejection
}

/// The event of a plain `POST /user`.
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

/// The record of an event whose data is the user, in CloudEvents' Kafka binary mode. Its key is the user's id.
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
