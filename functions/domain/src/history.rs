//! A history of the number of users: what both layers keep, and what is asked of them.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{Failure, Store};

/// How many distinct users there were at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Names the point.
    pub id: Uuid,
    /// In UTC, to the second.
    pub time: DateTime<Utc>,
    /// Distinct users until then.
    pub user_count: u64,
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
