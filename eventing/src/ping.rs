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

/// Ticks of many sources are spread over this time.
const SPREAD_MS: u64 = 500;
/// How often the clock is looked at, so that one that was set is noticed.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// By how much the clock may differ from the time that went by before it counts as set. Less is the work of a daemon
/// that corrects it, and must not skip or repeat a tick.
const STEP: TimeDelta = TimeDelta::seconds(2);

/// The wall clock; a test has its own.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// Runs a source until it is told to stop. A tick that is missed or fails is not made up for.
pub async fn run(
    metadata: Metadata,
    spec: PingSource,
    sink: Arc<dyn Sink>,
    health: Arc<TaskHealth>,
    stop: CancellationToken,
) {
    run_by(Arc::new(Utc::now), metadata, spec, sink, health, stop).await;
}

/// The same by another clock.
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
                () = stop.cancelled() => {}
                () = ticking => {}
            }
        }
    };
    supervise(&name, &health, start).await;
}

/// Ticks for ever. Ticks under way end with it.
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

/// When the next tick is, by a clock that may be set at any time.
struct Ticks<'a> {
    schedule: &'a Schedule,
    zone: &'a TimeZone,
    /// By both clocks, when the wall clock was looked at last.
    seen: (DateTime<Utc>, Instant),
    next: Option<DateTime<Utc>>,
}

impl<'a> Ticks<'a> {
    fn new(now: DateTime<Utc>, schedule: &'a Schedule, zone: &'a TimeZone) -> Self {
        let next = schedule.next_after(now, zone);
        Self { schedule, zone, seen: (now, Instant::now()), next }
    }

    /// Whether a tick is due now. A clock that was set, or a machine that slept, misses the ticks between, and goes on
    /// with the next one by the clock as it is.
    fn is_due(&mut self, now: DateTime<Utc>) -> bool {
        let (wall, monotonic) = std::mem::replace(&mut self.seen, (now, Instant::now()));
        let went_by = TimeDelta::from_std(monotonic.elapsed()).unwrap_or(TimeDelta::MAX);
        let stepped = ((now - wall) - went_by).abs() > STEP;
        if stepped {
            tracing::warn!(from = %wall, to = %now, "the clock was set: ticks follow it");
            self.next = self.schedule.next_after(now, self.zone);
            return false;
        }
        let Some(tick) = self.next.filter(|next| *next <= now) else { return false };
        // After a late wake-up several have passed, of which the last one counts.
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
    // A tick that is lost is made good by the next, and must not wait for ever beside it.
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
        // Its milliseconds are what is sent.
        .time(now.trunc_subsecs(3));
    let mut event = Event::try_from(builder)?;
    event.content_type.clone_from(&spec.content_type);
    event.data = data.unwrap_or_default();
    for (name, value) in spec.ce_overrides.iter().flat_map(|overrides| &overrides.extensions) {
        event.set(name, value.clone());
    }
    Ok(event)
}
