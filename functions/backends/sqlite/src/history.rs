//! Reads a history of the number of users: a table with the columns `id` (16 bytes), `time` (seconds since 1970 UTC)
//! and `user_count`, both growing, with an index on `user_count` and one on (`time`, `user_count`).

use domain::{Point, Window};
use sqlx::{AssertSqlSafe, SqlitePool};
use uuid::Uuid;

use crate::Error;

/// Points of the window, newest first. The cost is proportional to the result.
pub async fn points(readers: &SqlitePool, table: &'static str, window: Window) -> Result<Vec<Point>, Error> {
    // Times and counts grow together, so a bound on the time is a bound on the count.
    let bounds = format!(
        "user_count > ?1 AND user_count < ?2
         AND user_count >= coalesce((SELECT user_count FROM {table} WHERE time >= ?3 ORDER BY time, user_count LIMIT 1), ?2)
         AND user_count <= coalesce((SELECT user_count FROM {table} WHERE time < ?4 ORDER BY time DESC, user_count DESC LIMIT 1), ?1)"
    );
    let query = match window.step_s {
        None => format!(
            "SELECT id, time, user_count FROM {table} WHERE {bounds} ORDER BY user_count DESC LIMIT ?5"
        ),
        // Jumps from the last point of a step to the last point before that step, through the index.
        Some(_) => format!(
            "WITH RECURSIVE
             newest AS (SELECT time, user_count FROM {table} WHERE {bounds} ORDER BY user_count DESC LIMIT 1),
             step(time, user_count) AS (
                 SELECT time, user_count FROM newest
                 UNION ALL
                 SELECT older.time, older.user_count FROM step JOIN {table} AS older ON older.user_count = (
                     SELECT user_count FROM {table} WHERE time < step.time - step.time % ?6
                     ORDER BY time DESC, user_count DESC LIMIT 1)
                 WHERE older.time >= ?3 AND older.user_count > ?1
                 LIMIT ?5)
             SELECT points.id, points.time, points.user_count FROM step JOIN {table} AS points USING (user_count)
             ORDER BY points.user_count DESC"
        ),
    };
    let rows: Vec<(Vec<u8>, i64, i64)> = sqlx::query_as(AssertSqlSafe(query))
        .bind(count(window.above.unwrap_or(0)))
        .bind(count(window.below.unwrap_or(u64::MAX)))
        .bind(window.from_s().unwrap_or(i64::MIN))
        .bind(window.to_s().unwrap_or(i64::MAX))
        .bind(i64::try_from(window.limit).unwrap_or(i64::MAX))
        .bind(window.step_s.unwrap_or(1))
        .fetch_all(readers)
        .await?;
    rows.into_iter().map(point).collect()
}

/// The oldest point.
pub async fn oldest(readers: &SqlitePool, table: &'static str) -> Result<Option<Point>, Error> {
    let query = format!("SELECT id, time, user_count FROM {table} ORDER BY user_count LIMIT 1");
    let row = sqlx::query_as(AssertSqlSafe(query)).fetch_optional(readers).await?;
    row.map(point).transpose()
}

fn count(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn point((id, time, user_count): (Vec<u8>, i64, i64)) -> Result<Point, Error> {
    let decode = |e: Box<dyn std::error::Error + Send + Sync>| Error::Sql(sqlx::Error::Decode(e));
    let id = Uuid::from_slice(&id).map_err(|e| decode(e.into()))?;
    Point::new(id, time, user_count).map_err(|e| decode(e.into()))
}
