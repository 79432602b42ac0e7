//! The batch layer in MySQL: the database does the computing. One transaction sees one snapshot of the users.

use std::time::Duration;

use chrono::DateTime;
use domain::{Point, User, Window};
use sqlx::{Connection, MySqlConnection, QueryBuilder, Row};

use super::{
    session::{QUERY_TIMEOUT, bounded},
    values::{padded, uuid},
};
use crate::Tick;

/// Maximum number of users per transaction, which bounds its memory.
const PAGE: i64 = 10_000;
/// How long the transaction of one page may take, so that a server that hangs is noticed.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the transaction that computes everything anew may take.
const FULL_TIMEOUT: Duration = Duration::from_secs(600);
/// Maximum number of minutes per statement.
const MINUTES: usize = 1_000;

/// Users of a minute: the minute, its newest time in milliseconds, and how many.
type Minute = (i64, i64, i64);

/// Applies pending users page by page, or recomputes everything.
pub(super) async fn tick(connection: &mut MySqlConnection, full: bool) -> Result<Tick, sqlx::Error> {
    let mut new_users = 0;
    loop {
        let timeout = if full { FULL_TIMEOUT } else { PAGE_TIMEOUT };
        let (users, before, pending) = bounded(timeout, page(connection, full && new_users == 0)).await?;
        new_users += users - before;
        if pending < PAGE {
            let longest_name_user = bounded(QUERY_TIMEOUT, longest(connection)).await?;
            let unsigned = |n: i64| u64::try_from(n).unwrap_or(0);
            return Ok(Tick {
                new_users: unsigned(new_users),
                users: unsigned(users),
                longest_name_user,
                full,
            });
        }
    }
}

/// One transaction; returns the users in the views after and before it, and how many were pending.
async fn page(connection: &mut MySqlConnection, full: bool) -> Result<(i64, i64, i64), sqlx::Error> {
    // However long a recompute may take, a server that hangs already is noticed here.
    let isolation = sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *connection);
    bounded(QUERY_TIMEOUT, isolation).await?;
    let mut transaction = connection.begin().await?;
    // Serialises ticks. The first read after this creates the snapshot.
    let state = sqlx::query("SELECT users, longest_seq FROM batch WHERE only_row = 1 FOR UPDATE");
    let state = state.fetch_one(&mut *transaction).await?;
    let before: i64 = state.try_get(0)?;
    let pending: Vec<i64> = sqlx::query_scalar("SELECT seq FROM batch_pending ORDER BY seq LIMIT ?")
        .bind(if full { i64::MAX } else { PAGE })
        .fetch_all(&mut *transaction)
        .await?;
    let (users, longest) = if full {
        sqlx::query("DELETE FROM batch_minutes").execute(&mut *transaction).await?;
        recompute(&mut transaction).await?
    } else {
        let longest = longer(&mut transaction, state.try_get(1)?, &pending).await?;
        (before + apply_new_users(&mut transaction, &pending).await?, longest)
    };
    for chunk in pending.chunks(PAGE as usize) {
        let mut delete = QueryBuilder::new("DELETE FROM batch_pending WHERE seq IN (");
        list(&mut delete, chunk);
        delete.build().execute(&mut *transaction).await?;
    }
    let update = "UPDATE batch SET users = ?, longest_seq = ? WHERE only_row = 1";
    sqlx::query(update).bind(users).bind(longest).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok((users, before, if full { 0 } else { pending.len() as i64 }))
}

fn list(query: &mut QueryBuilder<sqlx::MySql>, numbers: &[i64]) {
    let mut separated = query.separated(", ");
    for number in padded(numbers) {
        separated.push_bind(*number);
    }
    query.push(")");
}

/// The longest name of the current view and the new users.
async fn longer(
    connection: &mut MySqlConnection,
    longest: Option<i64>,
    new: &[i64],
) -> Result<Option<i64>, sqlx::Error> {
    let candidates: Vec<i64> = longest.into_iter().chain(new.iter().copied()).collect();
    if candidates.is_empty() {
        return Ok(None);
    }
    let mut query = QueryBuilder::new("SELECT seq FROM users WHERE seq IN (");
    list(&mut query, &candidates);
    query.push(" ORDER BY CHAR_LENGTH(name) DESC, seq LIMIT 1");
    query.build_query_scalar().fetch_optional(connection).await
}

/// Adds new users to their minutes and to all later ones; returns how many there are.
async fn apply_new_users(connection: &mut MySqlConnection, new: &[i64]) -> Result<i64, sqlx::Error> {
    if new.is_empty() {
        return Ok(0);
    }
    let mut query =
        QueryBuilder::new("SELECT stored_at DIV 60000, MAX(stored_at), COUNT(*) FROM users WHERE seq IN (");
    list(&mut query, new);
    query.push(" GROUP BY 1 ORDER BY 1");
    let minutes: Vec<Minute> = query.build_query_as().fetch_all(&mut *connection).await?;
    for (minute, newest, came) in &minutes {
        let later = "UPDATE batch_minutes SET user_count = user_count + ? WHERE minute > ?";
        sqlx::query(later).bind(came).bind(minute).execute(&mut *connection).await?;
        let before = "SELECT user_count FROM batch_minutes WHERE minute <= ? ORDER BY minute DESC LIMIT 1";
        let before: Option<i64> =
            sqlx::query_scalar(before).bind(minute).fetch_optional(&mut *connection).await?;
        let this = "INSERT INTO batch_minutes (minute, time, user_count) VALUES (?, ?, ?)
            ON DUPLICATE KEY UPDATE time = GREATEST(time, VALUES(time)), user_count = VALUES(user_count)";
        sqlx::query(this)
            .bind(minute)
            .bind(newest / 1_000)
            .bind(before.unwrap_or(0) + came)
            .execute(&mut *connection)
            .await?;
    }
    Ok(minutes.iter().map(|(_, _, came)| came).sum())
}

/// Recomputes everything in one pass over the users; returns their number and the longest name.
async fn recompute(connection: &mut MySqlConnection) -> Result<(i64, Option<i64>), sqlx::Error> {
    // A rank grows with the length and, for equal lengths, with being stored earlier.
    let minutes = "SELECT stored_at DIV 60000, MAX(stored_at), COUNT(*),
            CAST(MAX((CHAR_LENGTH(name) << 54) - seq) AS SIGNED)
        FROM users GROUP BY 1 ORDER BY 1";
    let minutes: Vec<(i64, i64, i64, i64)> = sqlx::query_as(minutes).fetch_all(&mut *connection).await?;
    let mut users = 0;
    for chunk in minutes.chunks(MINUTES) {
        let mut insert = QueryBuilder::new("INSERT INTO batch_minutes (minute, time, user_count) ");
        insert.push_values(chunk, |mut row, (minute, newest, came, _)| {
            users += came;
            row.push_bind(minute).push_bind(newest / 1_000).push_bind(users);
        });
        insert.build().execute(&mut *connection).await?;
    }
    let rank = minutes.iter().map(|(_, _, _, rank)| rank).max();
    Ok((users, rank.map(|rank| (1 << 54) - rank.rem_euclid(1 << 54))))
}

/// The batch view: the user with the longest name.
pub(super) async fn longest(connection: &mut MySqlConnection) -> Result<Option<User>, sqlx::Error> {
    let query = "SELECT users.id, users.name FROM batch JOIN users ON users.seq = batch.longest_seq";
    let row = sqlx::query(query).fetch_optional(connection).await?;
    row.map(|row| Ok(User { id: uuid(&row, 0)?, name: row.try_get(1)? })).transpose()
}

/// The batch view as it is seen at `now_s`, in seconds since 1970 UTC: users per minute, newest first.
pub(super) async fn points(
    connection: &mut MySqlConnection,
    window: Window,
    now_s: i64,
) -> Result<Vec<Point>, sqlx::Error> {
    let newest = Window { limit: 1, ..Window::default() };
    let has_future = window.ends_about(now_s)
        && minutes(connection, newest).await?.first().is_some_and(|point| point.time.timestamp() > now_s);
    let points = minutes(connection, window.at(now_s, has_future)).await?;
    Ok(points.into_iter().map(|point| point.not_after(window.latest_s(now_s))).collect())
}

async fn minutes(connection: &mut MySqlConnection, window: Window) -> Result<Vec<Point>, sqlx::Error> {
    let mut points = Vec::new();
    let mut window = window;
    while points.len() < window.limit {
        // With steps, find each step's last point from the previous one; without, read all at once.
        let limit = if window.step_s.is_some() { 1 } else { window.limit };
        let rows: Vec<(i64, i64, i64)> = fetch_page(connection, &window, limit).await?;
        let Some((_, oldest, _)) = rows.last().copied() else { break };
        for row in rows {
            points.push(point(row)?);
        }
        let Some(step) = window.step_s else { break };
        window.to = DateTime::from_timestamp(oldest - oldest.rem_euclid(step), 0);
    }
    Ok(points)
}

/// The oldest point.
pub(super) async fn oldest_minute(connection: &mut MySqlConnection) -> Result<Option<Point>, sqlx::Error> {
    let query = "SELECT minute, time, user_count FROM batch_minutes ORDER BY time LIMIT 1";
    let row = sqlx::query_as(query).fetch_optional(connection).await?;
    row.map(point).transpose()
}

async fn fetch_page(
    connection: &mut MySqlConnection,
    window: &Window,
    limit: usize,
) -> Result<Vec<(i64, i64, i64)>, sqlx::Error> {
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let query = "SELECT minute, time, user_count FROM batch_minutes
        WHERE user_count > ? AND user_count < ? AND time >= ? AND time < ? ORDER BY time DESC LIMIT ?";
    sqlx::query_as(query)
        .bind(count(window.above.unwrap_or(0)))
        .bind(count(window.below.unwrap_or(u64::MAX)))
        .bind(window.from_s().unwrap_or(0))
        .bind(window.to_s().unwrap_or(i64::MAX))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await
}

fn point((minute, time, user_count): (i64, i64, i64)) -> Result<Point, sqlx::Error> {
    Point::minute(minute, time, user_count).map_err(|e| sqlx::Error::Decode(e.into()))
}
