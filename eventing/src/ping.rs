//! A PingSource: sends an event at each tick of its schedule (knative/eventing `pkg/adapter/mtping`).

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    delivery::{Delivery, deliver},
    event::Event,
    manifest::{Metadata, PingSource},
    sink::Sink,
};

/// Ticks of many sources are spread over this time.
const SPREAD_MS: u64 = 500;
/// A sleep that is longer than this notices a clock that was set.
const NAP: Duration = Duration::from_secs(10);

/// Plays a source until it is told to stop. A tick that is missed or fails is not made up for.
pub async fn play(metadata: Metadata, spec: PingSource, sink: Arc<dyn Sink>, stop: CancellationToken) {
    let mut after = Utc::now();
    while let Some(tick) = spec.schedule.next_after(after, &spec.timezone.0) {
        tokio::select! {
            () = stop.cancelled() => return,
            () = until(tick) => {}
        }
        // A machine that slept wakes up after many ticks, of which only the last one counts.
        after = tick.max(Utc::now());
        let (sink, function) = (sink.clone(), spec.sink.reference.name.clone());
        let event = event(&metadata, &spec, Utc::now());
        let namespace = metadata.namespace().to_owned();
        let sending = async move {
            sleep(Duration::from_millis(u64::from(Uuid::new_v4().as_fields().0) % SPREAD_MS)).await;
            send(&*sink, &function, &event, &namespace).await;
        };
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sending => {}
            }
        });
    }
}

async fn until(tick: DateTime<Utc>) {
    while let Ok(left) = (tick - Utc::now()).to_std() {
        sleep(left.min(NAP)).await;
    }
}

async fn send(sink: &dyn Sink, function: &str, event: &Event, namespace: &str) {
    let why = match event.to_request(namespace) {
        Ok(request) => match deliver(sink, function, request, &Delivery::PING_SOURCE, || {}).await {
            Ok(()) => return,
            Err(failure) => failure.why,
        },
        Err(why) => why.to_string(),
    };
    tracing::warn!(function, why, "a tick was lost");
}

/// The event of a tick.
#[must_use]
pub fn event(metadata: &Metadata, spec: &PingSource, now: DateTime<Utc>) -> Event {
    let base64 = spec.data_base64.as_ref().and_then(|data| BASE64_STANDARD.decode(data).ok());
    let data = base64.map(Bytes::from).or_else(|| spec.data.clone().map(Bytes::from));
    let source = format!("/apis/v1/namespaces/{}/pingsources/{}", metadata.namespace(), metadata.name);
    let mut event = Event {
        attributes: [
            ("specversion", "1.0".to_owned()),
            ("id", Uuid::new_v4().to_string()),
            ("type", "dev.knative.sources.ping".to_owned()),
            ("source", source),
            ("time", now.to_rfc3339_opts(SecondsFormat::Millis, true)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
        content_type: spec.content_type.clone(),
        data: data.unwrap_or_default(),
    };
    for (name, value) in spec.ce_overrides.iter().flat_map(|overrides| &overrides.extensions) {
        event.set(name, value.clone());
    }
    event
}
