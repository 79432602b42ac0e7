//! Writes the history of the number of users: a point if the number exceeds the newest point's. A day's partition
//! stores its newest point, and a point is written on the condition that the newest is the one that was read. So within
//! a day times and counts grow together, whatever others write. Around midnight writers may write to two days; readers
//! leave out a day's points that do not exceed the newest of the days before. `tests/models/midnight.rs` is a model of
//! both.

use std::time::Duration;

use backon::RetryableWithContext;
use futures_util::try_join;
use scylla::value::CqlValue;
use tokio::sync::MutexGuard;

use super::{
    answer::{Outcome, Rows},
    count::total,
    error::CassandraError,
    keyspace::{Day, Keyspace, Position},
    retry::{BACKOFF, may_retry},
};

/// Seconds of a day.
pub(super) const DAY: i64 = 24 * 60 * 60;
/// Extra TTL that absorbs clock skew between nodes and readers, seconds.
const SKEW_TTL: i64 = 60 * 60;
/// The longest TTL that Cassandra takes, seconds.
const MAX_TTL: i64 = 20 * 365 * DAY;

/// How long points are kept.
#[derive(Clone, Copy)]
pub(super) struct Retention(i64);

impl Retention {
    pub(super) fn new(retention: Duration) -> Self {
        Self(i64::try_from(retention.as_secs()).unwrap_or(i64::MAX))
    }

    /// Points before this time, in seconds, have expired.
    pub(super) fn since(self, now: i64) -> i64 {
        now.saturating_sub(self.0)
    }

    /// TTL of a row, seconds.
    fn ttl(self, more: i64) -> i32 {
        let seconds = self.0.saturating_add(SKEW_TTL).saturating_add(more).min(MAX_TTL);
        i32::try_from(seconds).unwrap_or(i32::MAX)
    }
}

/// Ensures that the newest point is the current number of users.
pub(super) async fn keep_up(keyspace: &Keyspace, retention: Retention) -> Result<(), CassandraError> {
    // One call at a time per process: those that wait usually find that a point was written for all.
    let known = keyspace.day.lock().await;
    let (total, ()) = try_join!(total(keyspace), keyspace.refresh_clock())?;
    let attempt = |known| attempt(keyspace, retention, total, known);
    let (_known, written) = attempt.retry(BACKOFF).context(known).when(may_retry()).await;
    written
}

/// Passes the guard through, as a retry with a context requires.
async fn attempt<'a>(
    keyspace: &'a Keyspace,
    retention: Retention,
    total: i64,
    mut known: MutexGuard<'a, Option<Day>>,
) -> (MutexGuard<'a, Option<Day>>, Result<(), CassandraError>) {
    let written = try_once(keyspace, retention, total, &mut known).await;
    (known, written)
}

/// Writes a point if the day's newest one has a lower count. Fails with [`CassandraError::Contended`] if another writer
/// was faster.
async fn try_once(
    keyspace: &Keyspace,
    retention: Retention,
    total: i64,
    known: &mut Option<Day>,
) -> Result<(), CassandraError> {
    let now = keyspace.clock.now();
    let today = now.div_euclid(DAY);
    let day = match *known {
        Some(known) if known.day >= today => known,
        _ => *known.insert(register_day(keyspace, retention, today).await?),
    };
    let newest = newest_of(keyspace, day.day).await?;
    let (time, count) = newest.unwrap_or(day.before);
    if count >= total {
        return Ok(());
    }
    // Time never goes back: readers rely on times and counts growing together.
    let time = now.max(time).max(day.day * DAY);
    if write(keyspace, retention, day.day, newest, (time, total)).await? == Outcome::Lost {
        return Err(CassandraError::Contended);
    }
    Ok(())
}

async fn write(
    keyspace: &Keyspace,
    retention: Retention,
    day: i64,
    newest: Option<Position>,
    (time, count): Position,
) -> Result<Outcome, CassandraError> {
    let number = |n| Some(CqlValue::BigInt(n));
    let day = Some(CqlValue::Int(i32::try_from(day)?));
    let to_live = Some(CqlValue::Int(retention.ttl(0)));
    let update = vec![
        to_live.clone(),
        number(time),
        number(count),
        day.clone(),
        newest.and_then(|(time, _)| number(time)),
        newest.and_then(|(_, count)| number(count)),
    ];
    let insert = vec![day, number(time), number(count), to_live];
    Outcome::of(keyspace.session.batch(&keyspace.statements.write(), vec![update, insert]).await?)
}

/// Registers the day for the next point, and finds the newest point before it.
async fn register_day(keyspace: &Keyspace, retention: Retention, today: i64) -> Result<Day, CassandraError> {
    let day = newest_day(keyspace).await?.map_or(today, |newest| newest.max(today));
    // Before a point is written: readers find points through the list of days.
    let registration = (i32::try_from(day)?, retention.ttl(2 * DAY));
    keyspace.session.execute_unpaged(&keyspace.statements.add_day, registration).await?;
    for older in days(keyspace, 0, day - 1).await? {
        if let Some(before) = newest_of(keyspace, older).await? {
            return Ok(Day { day, before });
        }
    }
    Ok(Day { day, before: (0, 0) })
}

/// A day's newest point. It is stored with the point itself, and so is equally durable.
pub(super) async fn newest_of(keyspace: &Keyspace, day: i64) -> Result<Option<Position>, CassandraError> {
    let rows = keyspace.session.execute_unpaged(&keyspace.statements.newest, (i32::try_from(day)?,)).await?;
    let row = Rows::of(rows)?.first::<(Option<i64>, Option<i64>)>()?;
    Ok(row.and_then(|(time, count)| time.zip(count)))
}

async fn newest_day(keyspace: &Keyspace) -> Result<Option<i64>, CassandraError> {
    let rows = Rows::of(keyspace.session.execute_unpaged(&keyspace.statements.newest_day, ()).await?)?;
    Ok(rows.first::<(i32,)>()?.map(|(day,)| i64::from(day)))
}

/// The days in a range that may have points, newest first.
pub(super) async fn days(keyspace: &Keyspace, from: i64, to: i64) -> Result<Vec<i64>, CassandraError> {
    let within = |day: i64| i32::try_from(day.clamp(0, i64::from(i32::MAX)));
    let days =
        keyspace.session.execute_unpaged(&keyspace.statements.days, (within(from)?, within(to)?)).await?;
    Ok(Rows::of(days)?.all::<(i32,)>()?.into_iter().map(|(day,)| i64::from(day)).collect())
}
