//! A PingSource's schedule: five or six fields of cron, or a descriptor like `@hourly` (robfig/cron v3).

use std::time::SystemTime;

use chrono::{DateTime, Utc};
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, tz::TimeZone};
use serde::Deserialize;

/// When a PingSource ticks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Schedule(Cron);

impl TryFrom<String> for Schedule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = |why: &dyn std::fmt::Display| format!("`{text}` is no schedule like `* * * * *`: {why}");
        if text.starts_with("@every") {
            return Err(wrong(&"`@every` is not supported by a PingSource"));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        parser.parse(&text).map(Self).map_err(|e| wrong(&e))
    }
}

impl Schedule {
    /// The first tick after a time, by the clock of a zone; none when there is none in the next centuries.
    #[must_use]
    pub fn next_after(&self, time: DateTime<Utc>, zone: &TimeZone) -> Option<DateTime<Utc>> {
        let time = Timestamp::try_from(SystemTime::from(time)).ok()?.to_zoned(zone.clone());
        let next = self.0.find_next_occurrence(&time, false).ok()?;
        Some(SystemTime::from(next).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_come_when_the_schedule_says_in_its_zone() {
        for (schedule, zone, after, next) in [
            ("* * * * *", "UTC", "2026-03-01T10:00:00Z", "2026-03-01T10:01:00Z"),
            ("* * * * *", "UTC", "2026-03-01T10:00:59.999Z", "2026-03-01T10:01:00Z"),
            ("*/15 * * * * *", "UTC", "2026-03-01T10:00:16Z", "2026-03-01T10:00:30Z"),
            ("0 9 * * *", "Europe/Berlin", "2026-01-10T08:00:01Z", "2026-01-11T08:00:00Z"),
            ("0 9 * * *", "Europe/Berlin", "2026-07-10T07:00:01Z", "2026-07-11T07:00:00Z"),
            ("0 12 * * *", "Asia/Kathmandu", "2026-07-10T00:00:00Z", "2026-07-10T06:15:00Z"),
            ("@hourly", "UTC", "2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z"),
            ("@daily", "America/New_York", "2026-03-08T06:00:00Z", "2026-03-09T04:00:00Z"),
            // Either the day of the month or the day of the week, as robfig/cron has it.
            ("0 0 13 * FRI", "UTC", "2026-03-01T00:00:00Z", "2026-03-06T00:00:00Z"),
            ("0 0 29 2 *", "UTC", "2026-03-01T00:00:00Z", "2028-02-29T00:00:00Z"),
        ] {
            let parsed = Schedule::try_from(schedule.to_owned()).unwrap();
            let is = parsed.next_after(after.parse().unwrap(), &TimeZone::get(zone).unwrap()).unwrap();
            assert_eq!(is, next.parse::<DateTime<Utc>>().unwrap(), "{schedule} {zone}");
        }
    }

    #[test]
    fn what_a_ping_source_does_not_know_is_refused() {
        for bad in ["", "@every 5m", "* * * *", "61 * * * *", "* * * * * * *", "soon"] {
            assert!(Schedule::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
