//! Stores users: one transaction for a group of them.

use std::collections::{HashMap, HashSet};

use domain::User;
use sqlx::{Connection, MySqlConnection, QueryBuilder, Row};
use uuid::Uuid;

use super::values::{padded, uuid};
use crate::Stored;

/// Stores all users in one transaction; returns outcomes in their order. `now` is in milliseconds since 1970 UTC.
pub(super) async fn store(
    connection: &mut MySqlConnection,
    users: &[User],
    now: i64,
) -> Result<Vec<Stored>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    // Tells rows of this attempt from existing ones; an attempt whose commit was not confirmed is a different one.
    let attempt = Uuid::new_v4();
    // A minute before 1970 has no name.
    let now = now.max(0);
    let mut insert = QueryBuilder::new("INSERT INTO users (id, name, stored_at, stored_by) ");
    insert.push_values(padded(users), |mut row, user| {
        row.push_bind(user.id.as_bytes().to_vec()).push_bind(&user.name);
        row.push_bind(now).push_bind(attempt.as_bytes().to_vec());
    });
    // Unlike IGNORE, hides no other error.
    insert.push(" ON DUPLICATE KEY UPDATE seq = seq");
    insert.build().execute(&mut *transaction).await?;
    let kept = kept(&mut transaction, users).await?;
    let mut new: HashSet<_> = kept.iter().filter(|(_, k)| k.by == attempt).map(|(id, _)| *id).collect();
    if !new.is_empty() {
        let mut pending = QueryBuilder::new("INSERT INTO batch_pending (seq) ");
        let seqs: Vec<_> = new.iter().filter_map(|id| kept.get(id)).map(|kept| kept.seq).collect();
        pending.push_values(padded(&seqs), |mut row, seq| {
            row.push_bind(*seq);
        });
        pending.push(" ON DUPLICATE KEY UPDATE seq = seq");
        pending.build().execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    let outcome = |user: &User| match kept.get(&user.id) {
        _ if new.remove(&user.id) => Stored::New,
        Some(kept) if kept.name != user.name => Stored::Conflict { kept: kept.name.clone() },
        _ => Stored::Duplicate,
    };
    Ok(users.iter().map(outcome).collect())
}

/// The existing row of an id.
struct Kept {
    seq: i64,
    name: String,
    by: Uuid,
}

async fn kept(connection: &mut MySqlConnection, users: &[User]) -> Result<HashMap<Uuid, Kept>, sqlx::Error> {
    let mut select = QueryBuilder::new("SELECT id, seq, name, stored_by FROM users WHERE id IN (");
    let mut ids = select.separated(", ");
    for user in padded(users) {
        ids.push_bind(user.id.as_bytes().to_vec());
    }
    select.push(")");
    let rows = select.build().fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok((uuid(row, 0)?, Kept { seq: row.try_get(1)?, name: row.try_get(2)?, by: uuid(row, 3)? }))
        })
        .collect()
}
