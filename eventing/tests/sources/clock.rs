//! How a PingSource reacts to changes of the clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use eventing::{manifest::Manifest, ping};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::harness::{Function, status};

/// A scenario for a PingSource.
struct Run {
    schedule: &'static str,
    zone: &'static str,
    /// The clock's time at the start.
    begin: &'static str,
    /// Adjustment of the clock, 31.5 s after the start.
    step: TimeDelta,
    /// Time that the source runs after the adjustment.
    lasts: Duration,
    /// Time that the function takes to respond to a tick.
    answer: Duration,
}

/// The project's PingSource, which ticks every minute.
fn every_minute(step: TimeDelta) -> Run {
    let (schedule, zone, begin) = ("* * * * *", "UTC", "2026-03-01T10:00:30Z");
    Run { schedule, zone, begin, step, lasts: Duration::from_secs(180), answer: Duration::ZERO }
}

impl Run {
    /// Runs the scenario. Returns the times of the ticks in UTC, as the events state them.
    async fn ticks(self) -> Vec<String> {
        let schedule = [format!("schedule: \"{}\"", self.schedule), format!("timezone: {}", self.zone)];
        let text = include_str!("../../minute-to-batch.yaml");
        let text =
            text.replace("schedule: \"* * * * *\"", &schedule[0]).replace("timezone: Etc/UTC", &schedule[1]);
        let Manifest::PingSource(source) = eventing::manifest::read("f", &text).unwrap().remove(0) else {
            panic!("no PingSource")
        };
        assert!(text.contains(self.zone), "{text}");
        let (begun, begin) = (Instant::now(), self.begin.parse::<DateTime<Utc>>().unwrap());
        let set = Arc::new(AtomicI64::new(0));
        let seen = set.clone();
        let clock: ping::Clock = Arc::new(move || {
            let went_by = TimeDelta::from_std(begun.elapsed()).unwrap();
            begin + went_by + TimeDelta::milliseconds(seen.load(SeqCst))
        });
        let batch = Function::new(self.answer, |_| status(200));
        let stop = CancellationToken::new();
        let health = Arc::default();
        let running = ping::run_by(clock, source.metadata, source.spec, batch.clone(), health, stop.clone());
        let running = tokio::spawn(running);
        sleep(Duration::from_millis(31_500)).await;
        set.store(self.step.num_milliseconds(), SeqCst);
        sleep(self.lasts).await;
        stop.cancel();
        running.await.unwrap();
        batch.heard("ce-time").iter().map(|time| time[11..16].to_owned()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn ticks_follow_a_clock_that_is_set_back() {
    assert_eq!(every_minute(TimeDelta::hours(-1)).ticks().await, ["10:01", "09:02", "09:03", "09:04"]);
}

#[tokio::test(start_paused = true)]
async fn ticks_follow_a_clock_that_is_set_forth_without_a_burst() {
    assert_eq!(every_minute(TimeDelta::hours(1)).ticks().await, ["10:01", "11:02", "11:03", "11:04"]);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_corrected_a_little_neither_skips_nor_doubles_a_tick() {
    // Sets the clock back to 10:00:59.6 right after the tick of 10:01.
    assert_eq!(every_minute(TimeDelta::milliseconds(-1_900)).ticks().await, ["10:01", "10:02", "10:03"]);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_while_a_tick_is_sent_neither_repeats_nor_stops_it() {
    for (step, after) in [(-1, ["09:02", "09:03", "09:04"]), (1, ["11:02", "11:03", "11:04"])] {
        let run = Run { answer: Duration::from_secs(20), ..every_minute(TimeDelta::hours(step)) };
        let ticks = run.ticks().await;
        assert_eq!((ticks[0].as_str(), &ticks[1..]), ("10:01", &after.map(str::to_owned)[..]));
    }
}

/// Returns the ticks, in UTC, of a source in Berlin's time zone that runs for `hours` hours.
async fn in_berlin(schedule: &'static str, begin: &'static str, hours: u64) -> Vec<String> {
    let lasts = Duration::from_secs(3_600 * hours);
    Run { schedule, begin, zone: "Europe/Berlin", lasts, ..every_minute(TimeDelta::zero()) }.ticks().await
}

#[tokio::test(start_paused = true)]
async fn ticks_go_on_when_daylight_saving_time_begins() {
    // At 01:00 UTC, the local time changes from 02:00 to 03:00.
    let begin = "2026-03-29T00:10:00Z";
    assert_eq!(in_berlin("*/30 * * * *", begin, 2).await, ["00:30", "01:00", "01:30", "02:00"]);
    // The first tick after the change is an hour earlier in UTC than that of the day before.
    assert_eq!(in_berlin("0 9 * * *", "2026-03-28T07:30:00Z", 24).await, ["08:00", "07:00"]);
    // A local time that does not exist on that day.
    assert_eq!(in_berlin("30 2 * * *", begin, 25).await.last().unwrap(), "00:30");
}

#[tokio::test(start_paused = true)]
async fn ticks_go_on_when_daylight_saving_time_ends() {
    // At 01:00 UTC, the local time changes from 03:00 to 02:00, so 02:30 occurs twice.
    let begin = "2026-10-25T00:10:00Z";
    assert_eq!(in_berlin("*/30 * * * *", begin, 2).await, ["00:30", "01:00", "01:30", "02:00"]);
    assert_eq!(in_berlin("30 2 * * *", begin, 26).await, ["00:30", "01:30"]);
}
