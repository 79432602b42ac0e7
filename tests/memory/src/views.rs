//! The speed layer's views in memory.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use backend_views::Counter;
use domain::{Failure, History, Point, Store, Window};
use uuid::Uuid;

use crate::{Clock, history::select, lock};

/// Views that all clones share; a clone may have another clock and another retention.
#[derive(Clone)]
pub struct MemoryViews {
    state: Arc<Mutex<State>>,
    clock: Clock,
    retention_s: i64,
}

#[derive(Default)]
struct State {
    counted: BTreeSet<Uuid>,
    /// Time in seconds since 1970 UTC and count; both grow.
    points: Vec<(i64, i64)>,
}

impl MemoryViews {
    /// Empty views.
    #[must_use]
    pub fn new(clock: Clock, retention: Duration) -> Self {
        Self { state: Arc::default(), clock, retention_s: seconds(retention) }
    }

    /// The same views, as another process with its own clock and retention sees them.
    #[must_use]
    pub fn with(&self, clock: Clock, retention: Duration) -> Self {
        Self { state: self.state.clone(), clock, retention_s: seconds(retention) }
    }

    /// Replaces the history: seconds since 1970 UTC and counts, oldest first.
    pub fn fill(&self, points: &[(i64, u64)]) {
        let points = points.iter().map(|(time, count)| (*time, i64::try_from(*count).unwrap_or(i64::MAX)));
        lock(&self.state).points = points.collect();
    }

    /// The ids that are counted.
    #[must_use]
    pub fn counted(&self) -> BTreeSet<Uuid> {
        lock(&self.state).counted.clone()
    }

    /// Whether an id is counted.
    #[must_use]
    pub fn has(&self, id: &Uuid) -> bool {
        lock(&self.state).counted.contains(id)
    }

    /// All points, oldest first: seconds since 1970 UTC and counts.
    #[must_use]
    pub fn history(&self) -> Vec<(i64, i64)> {
        lock(&self.state).points.clone()
    }

    /// Counts each id as new, as a store without a check for duplicates would do.
    pub fn count_without_check(&self, ids: &[Uuid]) {
        let mut state = lock(&self.state);
        state.counted.extend(ids);
        state.add(i64::try_from(ids.len()).unwrap_or(i64::MAX), (self.clock)().div_euclid(1_000));
    }

    fn read(&self) -> Result<Vec<Point>, Failure> {
        let points = lock(&self.state).points.clone();
        points
            .into_iter()
            .map(|(time, count)| Point::speed(time, count).map_err(Failure::unavailable))
            .collect()
    }
}

impl State {
    fn add(&mut self, new: i64, now: i64) {
        for (time, _) in &mut self.points {
            *time = now.min(*time);
        }
        let total = self.points.last().map_or(0, |(_, count)| *count);
        self.points.push((now, total + new));
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[async_trait]
impl Store for MemoryViews {
    async fn ready(&self) -> Result<(), Failure> {
        Ok(())
    }
}

#[async_trait]
impl Counter for MemoryViews {
    async fn count(&self, ids: Vec<Uuid>) -> Result<(), Failure> {
        let now = (self.clock)().div_euclid(1_000);
        let mut state = lock(&self.state);
        let new = ids.into_iter().filter(|id| state.counted.insert(*id)).count();
        if new > 0 {
            state.add(i64::try_from(new).unwrap_or(i64::MAX), now);
            let (oldest, newest) = (now.saturating_sub(self.retention_s), state.points.len() - 1);
            let mut n = 0;
            state.points.retain(|(time, _)| {
                n += 1;
                *time >= oldest || n > newest
            });
        }
        Ok(())
    }

    async fn total(&self) -> Result<u64, Failure> {
        let total = lock(&self.state).points.last().map_or(0, |(_, count)| *count);
        u64::try_from(total).map_err(Failure::unavailable)
    }
}

#[async_trait]
impl History for MemoryViews {
    async fn points(&self, window: Window) -> Result<Vec<Point>, Failure> {
        Ok(select(self.read()?.into_iter(), &window))
    }

    async fn oldest(&self) -> Result<Option<Point>, Failure> {
        Ok(self.read()?.into_iter().next())
    }
}
