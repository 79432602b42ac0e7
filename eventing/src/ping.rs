//! A PingSource: sends an event at each tick of its schedule (knative/eventing `pkg/adapter/mtping`).

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use ::event::{EventBuilder, EventBuilderV10, InvalidEvent};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use framework::supervise::{TaskHealth, panic_message, supervise};
use futures_util::FutureExt;
use jiff::tz::TimeZone;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    delivery::{Delivery, deliver},
    event::Event,
    manifest::{Metadata, PingSource, Schedule},
    sink::{Limited, Sink},
};

/// Maximum random delay of a tick, so that many sources do not tick at once.
const SPREAD_MS: u64 = 500;
/// Interval at which the wall clock is checked for having been set.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum difference between wall clock and elapsed time before the clock counts as set. Smaller ones are corrections by
/// NTP, which must not skip or repeat a tick.
const MAX_DRIFT: TimeDelta = TimeDelta::seconds(2);

/// The wall clock; tests inject their own.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// Runs a source until `stop`. A tick that is missed or fails is not made up for.
pub async fn run(
    metadata: Metadata,
    spec: PingSource,
    sink: Arc<dyn Sink>,
    health: Arc<TaskHealth>,
    stop: CancellationToken,
) {
    run_by(Arc::new(Utc::now), metadata, spec, sink, health, stop).await;
}

/// The same with another clock.
pub async fn run_by(
    clock: Clock,
    metadata: Metadata,
    spec: PingSource,
    sink: Arc<dyn Sink>,
    health: Arc<TaskHealth>,
    stop: CancellationToken,
) {
    let name = metadata.name.clone();
    let start = || {
        let ticking = tick(clock.clone(), metadata.clone(), spec.clone(), sink.clone(), health.clone());
        let stop = stop.clone();
        async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = ticking => {}
            }
        }
    };
    supervise(&name, &health, start).await;
}

/// Ticks for ever. Dropping it cancels ticks in flight.
async fn tick(
    clock: Clock,
    metadata: Metadata,
    spec: PingSource,
    sink: Arc<dyn Sink>,
    health: Arc<TaskHealth>,
) {
    let mut ticks = Ticks::new(clock(), &spec.schedule, &spec.timezone.0);
    let mut under_way = tokio::task::JoinSet::new();
    loop {
        let Some(next) = ticks.next else { return std::future::pending().await };
        let left = (next - clock()).to_std().unwrap_or_default();
        sleep(left.min(CLOCK_CHECK_INTERVAL)).await;
        while under_way.try_join_next().is_some() {}
        if !ticks.is_due(clock()) {
            continue;
        }
        let (sink, health) = (sink.clone(), health.clone());
        let (metadata, spec) = (metadata.clone(), spec.clone());
        let now = clock();
        under_way.spawn(async move {
            sleep(Duration::from_millis(fastrand::u64(..SPREAD_MS))).await;
            match AssertUnwindSafe(send(&*sink, &metadata, &spec, now)).catch_unwind().await {
                Ok(Ok(())) => health.recovered(),
                Ok(Err(why)) => lost(&metadata, &health, why),
                Err(panic) => lost(&metadata, &health, format!("panicked: {}", panic_message(&*panic))),
            }
        });
    }
}

/// The next tick, by a wall clock that may be set at any time.
struct Ticks<'a> {
    schedule: &'a Schedule,
    zone: &'a TimeZone,
    /// Wall clock and monotonic clock at the last check.
    seen: (DateTime<Utc>, Instant),
    next: Option<DateTime<Utc>>,
}

impl<'a> Ticks<'a> {
    fn new(now: DateTime<Utc>, schedule: &'a Schedule, zone: &'a TimeZone) -> Self {
        let next = schedule.next_after(now, zone);
        Self { schedule, zone, seen: (now, Instant::now()), next }
    }

    /// Whether a tick is due. After the clock was set or the machine slept, skips the ticks in between and schedules the
    /// next one by the new time.
    fn is_due(&mut self, now: DateTime<Utc>) -> bool {
        let (wall, monotonic) = std::mem::replace(&mut self.seen, (now, Instant::now()));
        let elapsed = TimeDelta::from_std(monotonic.elapsed()).unwrap_or(TimeDelta::MAX);
        let stepped = ((now - wall) - elapsed).abs() > MAX_DRIFT;
        if stepped {
            tracing::warn!(from = %wall, to = %now, "the clock was set: ticks follow it");
            self.next = self.schedule.next_after(now, self.zone);
            return false;
        }
        let Some(tick) = self.next.filter(|next| *next <= now) else { return false };
        // After a late wake-up several ticks may have passed: they count as one.
        self.next = self.schedule.next_after(now.max(tick), self.zone);
        true
    }
}

fn lost(metadata: &Metadata, health: &TaskHealth, why: String) {
    tracing::warn!(source = metadata.name, why, "a tick was lost");
    health.failed(format!("a tick was lost: {why}"));
}

async fn send(
    sink: &dyn Sink,
    metadata: &Metadata,
    spec: &PingSource,
    now: DateTime<Utc>,
) -> Result<(), String> {
    let request = event(metadata, spec, now)
        .map_err(|why| why.to_string())?
        .to_request(metadata.namespace())
        .map_err(|why| why.to_string())?;
    let function = &spec.sink.reference.name;
    // The next tick makes up for a lost one, so a tick must not be retried for ever.
    let sink = Limited(sink);
    let sent = deliver(&sink, function, request, &Delivery::PING_SOURCE, |_| {});
    sent.await.map_err(|failure| failure.why)
}

/// The event of a tick.
pub fn event(metadata: &Metadata, spec: &PingSource, now: DateTime<Utc>) -> Result<Event, InvalidEvent> {
    let base64 = spec.data_base64.as_ref().and_then(|data| BASE64_STANDARD.decode(data).ok());
    let data = base64.map(Bytes::from).or_else(|| spec.data.clone().map(Bytes::from));
    let source = format!("/apis/v1/namespaces/{}/pingsources/{}", metadata.namespace(), metadata.name);
    let builder = EventBuilderV10::new()
        .id(Uuid::new_v4())
        .ty("dev.knative.sources.ping")
        .source(source)
        // Sent with milliseconds.
        .time(now.trunc_subsecs(3));
    let mut event = Event::try_from(builder)?;
    event.content_type.clone_from(&spec.content_type);
    event.data = data.unwrap_or_default();
    for (name, value) in spec.ce_overrides.iter().flat_map(|overrides| &overrides.extensions) {
        event.set(name, value.clone());
    }
    Ok(event)
}
