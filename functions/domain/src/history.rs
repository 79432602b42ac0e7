//! A history of the number of users: what both layers keep, and what is asked of them.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{Failure, Store};

/// A `to` at most this many seconds ago still means "until now".
const RECENT: i64 = 5;
/// The bits of version 8 and variant 1 in a UUID, between 48 bits of time and 62 bits of count.
const VERSION_8: u128 = 0x8000_8000_0000_0000_0000;

/// How many distinct users there were at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Names the point.
    pub id: Uuid,
    /// In UTC, in whole seconds.
    pub time: DateTime<Utc>,
    /// Distinct users until then.
    pub user_count: u64,
}

/// A stored number that no point has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the time or the count of a point is out of range")]
pub struct PointOutOfRange;

impl Point {
    /// A point with an id that was stored. `time_s` is in seconds since 1970 UTC.
    ///
    /// # Errors
    /// The time is outside the calendar, or the count is negative.
    pub fn new(id: Uuid, time_s: i64, user_count: i64) -> Result<Self, PointOutOfRange> {
        let time = DateTime::from_timestamp(time_s, 0).ok_or(PointOutOfRange)?;
        Ok(Self { id, time, user_count: u64::try_from(user_count).map_err(|_| PointOutOfRange)? })
    }

    /// A point of the speed layer. `time_s` is in seconds since 1970 UTC. Its id is derived from time and count (UUID
    /// version 8), so that it need not be stored.
    ///
    /// # Errors
    /// The time or the count is negative or too large.
    pub fn speed(time_s: i64, user_count: i64) -> Result<Self, PointOutOfRange> {
        Self::new(name(time_s, user_count)?, time_s, user_count)
    }

    /// A point of the batch layer: the newest one of a minute, which is given in minutes since 1970 UTC. Its id is
    /// derived from the minute (UUID version 8), so that recomputing the views gives the same.
    ///
    /// # Errors
    /// The minute, the time or the count is negative or too large.
    pub fn minute(minute: i64, time_s: i64, user_count: i64) -> Result<Self, PointOutOfRange> {
        Self::new(name(minute, 0)?, time_s, user_count)
    }
}

impl Point {
    /// The point with a time of at most `latest_s`, in seconds since 1970 UTC.
    #[must_use]
    pub fn not_after(self, latest_s: i64) -> Self {
        let latest = DateTime::from_timestamp(latest_s, 0);
        Self { time: latest.map_or(self.time, |latest| self.time.min(latest)), ..self }
    }
}

/// 48 bits, the version, the variant, 62 bits.
fn name(time: i64, count: i64) -> Result<Uuid, PointOutOfRange> {
    let bits = |n: i64, bits: u32| u128::try_from(n).ok().filter(|n| n >> bits == 0).ok_or(PointOutOfRange);
    Ok(Uuid::from_u128(bits(time, 48)? << 80 | VERSION_8 | bits(count, 62)?))
}

/// Which points of a history; all bounds are optional.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// Not before this time.
    pub from: Option<DateTime<Utc>>,
    /// Before this time.
    pub to: Option<DateTime<Utc>>,
    /// Only counts above this one.
    pub above: Option<u64>,
    /// Only counts below this one.
    pub below: Option<u64>,
    /// Only the last point of each step of so many seconds; steps are aligned to 1970 UTC.
    pub step_s: Option<i64>,
    /// At most so many, the newest.
    pub limit: usize,
}

impl Window {
    /// `from` as seconds since 1970 UTC, for comparison with points: those have whole seconds, so at or after 1.5 s
    /// means at or after 2 s.
    #[must_use]
    pub fn from_s(&self) -> Option<i64> {
        self.from.map(ceil_seconds)
    }

    /// `to` as seconds since 1970 UTC, for comparison with points: before 1.5 s means before 2 s.
    #[must_use]
    pub fn to_s(&self) -> Option<i64> {
        self.to.map(ceil_seconds)
    }

    /// The window as it is read at the time `now_s`, in seconds since 1970 UTC. A clock that was ahead may have written
    /// points into the future (`has_future`). A `to` of now includes them, or they would hide what was counted since.
    #[must_use]
    pub fn at(self, now_s: i64, has_future: bool) -> Self {
        match self.to_s() {
            Some(to) if to <= now_s && !(has_future && to >= now_s - RECENT) => self,
            _ => Self { to: None, ..self },
        }
    }

    /// Whether the answer depends on points in the future.
    #[must_use]
    pub fn ends_about(&self, now_s: i64) -> bool {
        self.to_s().is_some_and(|to| (now_s - RECENT..=now_s).contains(&to))
    }

    /// The latest time that a point of the window shows at the time `now_s`, whatever clock wrote it.
    #[must_use]
    pub fn latest_s(&self, now_s: i64) -> i64 {
        self.to_s().map_or(now_s, |to| now_s.min(to - 1))
    }
}

fn ceil_seconds(time: DateTime<Utc>) -> i64 {
    time.timestamp() + i64::from(time.timestamp_subsec_nanos() > 0)
}

/// A layer's history of the number of users.
#[async_trait]
pub trait History: Store {
    /// The points in a window, newest first.
    ///
    /// # Errors
    /// The store is unavailable.
    async fn points(&self, window: Window) -> Result<Vec<Point>, Failure>;

    /// The oldest point that the layer keeps.
    ///
    /// # Errors
    /// The store is unavailable.
    async fn oldest(&self) -> Result<Option<Point>, Failure>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_until_now_includes_points_in_the_future() {
        let window = |to_s| Window { to: DateTime::from_timestamp(to_s, 0), ..Window::default() };
        for (to, has_future, is_bounded) in [
            (90, true, true),
            (94, true, true),
            (95, true, false),
            (100, true, false),
            (100, false, true),
            (101, false, false),
        ] {
            assert_eq!(window(to).at(100, has_future).to.is_some(), is_bounded, "{to}");
        }
        assert!(
            window(95).ends_about(100) && !window(94).ends_about(100) && !Window::default().ends_about(100)
        );
        assert_eq!((window(90).latest_s(100), Window::default().latest_s(100)), (89, 100));
        let point = Point::speed(500, 1).unwrap();
        assert_eq!(
            (point.clone().not_after(100).time.timestamp(), point.not_after(900).time.timestamp()),
            (100, 500)
        );
    }

    #[test]
    fn ids_are_derived_from_what_names_a_point() {
        let speed = Point::speed(0x1234_5678, 0x9a).unwrap();
        assert_eq!(speed.id.to_string(), "00001234-5678-8000-8000-00000000009a");
        assert_eq!((speed.time.timestamp(), speed.user_count), (0x1234_5678, 0x9a));
        let minute = Point::minute(0xabc, 7, 3).unwrap();
        assert_eq!(minute.id.to_string(), "00000000-0abc-8000-8000-000000000000");
        assert_eq!((minute.id.get_version_num(), minute.id.get_variant()), (8, uuid::Variant::RFC4122));
        for (time, count) in [(-1, 1), (1, -1), (i64::MAX, 1), (1, i64::MAX)] {
            assert_eq!(Point::speed(time, count), Err(PointOutOfRange), "{time} {count}");
        }
        assert!(Point::new(Uuid::nil(), -1, 1).is_ok(), "a time before 1970");
    }

    #[test]
    fn bounds_are_compared_in_whole_seconds() {
        let window = |ms, ns| {
            let time =
                DateTime::from_timestamp_millis(ms).map(|time| time + chrono::TimeDelta::nanoseconds(ns));
            let window = Window { from: time, to: time, ..Window::default() };
            assert_eq!(window.from_s(), window.to_s());
            window.from_s()
        };
        let seconds =
            [(1_000, 0), (1_001, 0), (1_000, 1), (-500, 0), (-1_000, 0)].map(|(ms, ns)| window(ms, ns));
        assert_eq!(seconds, [Some(1), Some(2), Some(2), Some(0), Some(-1)]);
        assert_eq!(Window::default().from_s(), None);
    }
}
