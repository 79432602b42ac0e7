//! Reads the history backwards, day by day; a query costs what it returns. Within a day times and counts are ordered
//! together. Around midnight, while writers write to two days, a new day's first points may be overtaken by the old
//! day's last ones: those that do not exceed the old day's newest count are left out, so that answers never fall.

use domain::{Point, Window};
use futures_util::try_join;

use super::{
    answer::Rows,
    error::CassandraError,
    history::{DAY, Retention, days, newest_of},
    keyspace::{Keyspace, Position},
};

/// Points of the window that are kept.
pub(super) async fn points(
    keyspace: &Keyspace,
    window: Window,
    retention: Retention,
) -> Result<Vec<Point>, CassandraError> {
    keyspace.refresh_clock().await?;
    let now = keyspace.clock.now();
    let from = window.from_s().unwrap_or(0).max(retention.since(now)).max(0);
    if from > now {
        return Ok(Vec::new());
    }
    let has_future = window.ends_about(now) && has_future(keyspace, now).await?;
    let to = window.at(now, has_future).to_s().unwrap_or(i64::MAX);
    let below = window.below.map_or(i64::MAX, |n| i64::try_from(n).unwrap_or(i64::MAX));
    let above = window.above.map_or(0, |n| i64::try_from(n).unwrap_or(i64::MAX));
    let mut reader =
        Reader { keyspace, from: (from, -1), before: (to, -1), below, floor: 0, points: Vec::new() };
    let days = days(keyspace, from.div_euclid(DAY), to.saturating_sub(1).div_euclid(DAY)).await?;
    for (at, &day) in days.iter().enumerate() {
        let floor = newest_count(keyspace, &days[at + 1..]);
        (reader.floor, _) = try_join!(floor, reader.skip_to_below(day))?;
        match window.step_s {
            None => reader.read(day, window.limit).await?,
            Some(step) => reader.step(day, step, above, window.limit).await?,
        }
        if reader.points.len() >= window.limit
            || reader.points.last().is_some_and(|(_, count)| *count <= above)
        {
            break;
        }
    }
    let latest = window.latest_s(now);
    let within = reader.points.into_iter().filter(|(_, count)| *count > above).take(window.limit);
    within.map(|position| point(position, latest)).collect()
}

/// The newest count of some days, newest first; 0 if they have no point.
async fn newest_count(keyspace: &Keyspace, days: &[i64]) -> Result<i64, CassandraError> {
    for &day in days {
        if let Some((_, count)) = newest_of(keyspace, day).await? {
            return Ok(count);
        }
    }
    Ok(0)
}

/// The oldest point that is kept.
pub(super) async fn oldest(
    keyspace: &Keyspace,
    retention: Retention,
) -> Result<Option<Point>, CassandraError> {
    keyspace.refresh_clock().await?;
    let now = keyspace.clock.now();
    let since = retention.since(now).max(0);
    for day in days(keyspace, since.div_euclid(DAY), i64::MAX).await?.into_iter().rev() {
        let values = (i32::try_from(day)?, since);
        let rows = Rows::of(keyspace.session.execute_unpaged(&keyspace.statements.oldest, values).await?)?;
        if let Some(position) = rows.first::<Position>()? {
            return Ok(Some(point(position, now)?));
        }
    }
    Ok(None)
}

/// Whether a fast clock has written points later than now. Those after them have the same time.
async fn has_future(keyspace: &Keyspace, now: i64) -> Result<bool, CassandraError> {
    for day in days(keyspace, now.div_euclid(DAY), i64::MAX).await? {
        let values = (i32::try_from(day)?, now + 1);
        let rows = Rows::of(keyspace.session.execute_unpaged(&keyspace.statements.oldest, values).await?)?;
        if rows.first::<Position>()?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads backwards.
struct Reader<'a> {
    keyspace: &'a Keyspace,
    /// No point before this position.
    from: Position,
    /// No point at this position or after it.
    before: Position,
    /// Only counts below this one; those of points that are kept are, too.
    below: i64,
    /// Only counts above this one: the newest of the days before.
    floor: i64,
    points: Vec<Position>,
}

impl Reader<'_> {
    /// So many points of a day, newest first.
    async fn fetch_page(
        &self,
        day: i64,
        before: Position,
        limit: usize,
    ) -> Result<Vec<Position>, CassandraError> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let values = (i32::try_from(day)?, before.0, before.1, self.from.0, self.from.1, limit);
        Rows::of(self.keyspace.session.execute_unpaged(&self.keyspace.statements.points, values).await?)?
            .all()
    }

    /// Finds where a day's counts fall below the bound, by bisecting the times.
    async fn skip_to_below(&mut self, day: i64) -> Result<(), CassandraError> {
        let newest = self.fetch_page(day, self.before, 1).await?;
        if newest.first().is_none_or(|(_, count)| *count < self.below) {
            return Ok(());
        }
        // At the end of `low` all counts are below; at that of `high` they are not.
        let (mut low, mut high) = (day * DAY - 1, newest[0].0);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let newest = self.fetch_page(day, (middle + 1, -1), 1).await?;
            match newest.first() {
                Some((time, count)) if *count >= self.below => high = *time,
                _ => low = middle,
            }
        }
        self.before = self.before.min((high, self.below));
        Ok(())
    }

    /// Reads points of a day until there are enough.
    async fn read(&mut self, day: i64, limit: usize) -> Result<(), CassandraError> {
        let points = self.fetch_page(day, self.before, limit - self.points.len()).await?;
        for point in points {
            self.keep(point);
        }
        Ok(())
    }

    /// Reads the last point of each step of a day, skipping what is between.
    async fn step(&mut self, day: i64, step: i64, above: i64, limit: usize) -> Result<(), CassandraError> {
        while self.points.len() < limit {
            let Some(point) = self.fetch_page(day, self.before, 1).await?.pop() else { return Ok(()) };
            self.before = (point.0 - point.0.rem_euclid(step), -1);
            self.keep(point);
            if point.1 <= above.max(self.floor) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn keep(&mut self, point: Position) {
        if point.1 < self.below && point.1 > self.floor {
            self.below = point.1;
            self.points.push(point);
        }
    }
}

/// A point is named after its position, so its id needs no column. Its time is capped at `latest`, whatever clock wrote
/// it.
fn point((time, count): Position, latest: i64) -> Result<Point, CassandraError> {
    Ok(Point::speed(time, count)?.not_after(latest))
}
