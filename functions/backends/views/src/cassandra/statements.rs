//! All statements, prepared once per session. The driver retries only idempotent ones.

use std::{sync::Arc, time::Duration};

use futures_util::try_join;
use scylla::{
    client::session::Session,
    policies::retry::FallthroughRetryPolicy,
    statement::{
        Consistency, SerialConsistency,
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
};

use super::{
    error::CassandraError,
    url::{Scope, Url},
};

const SHARDS: &str = "SELECT value, toUnixTimestamp(now()) FROM settings WHERE name = 'shards'";

/// The statements of a session.
pub(super) struct Statements {
    /// `shard`, `ids` → `id`, `users`.
    pub(super) existing: PreparedStatement,
    /// `shards` → `users`.
    pub(super) totals: PreparedStatement,
    /// `users`, `shard`, `users before` | `shard`, `id`.
    count: [PreparedStatement; 2],
    /// → `day`.
    pub(super) newest_day: PreparedStatement,
    /// `from`, `to` → `day`, newest first.
    pub(super) days: PreparedStatement,
    /// `day`, `seconds to live`.
    pub(super) add_day: PreparedStatement,
    /// `day` → `newest_time`, `newest_count`.
    pub(super) newest: PreparedStatement,
    /// `day`, `seconds to live`, …: the row that stands for the newest, and the row itself.
    write: [PreparedStatement; 2],
    /// `day`, `before (time, user_count)`, `after (time, user_count)`, `limit` → `time`, `user_count`.
    pub(super) points: PreparedStatement,
    /// `day`, `from time` → `time`, `user_count`.
    pub(super) oldest: PreparedStatement,
    /// → `value`, the server's time in milliseconds; light, so that readiness asks it.
    pub(super) shards: PreparedStatement,
    /// The same, also of a value that is just being set.
    pub(super) shards_set: PreparedStatement,
    /// `value`.
    pub(super) set_shards: PreparedStatement,
    timeout: Duration,
    serial: SerialConsistency,
}

impl Statements {
    /// Prepares all at once, so that it takes one round trip.
    pub(super) async fn prepare(session: &Session, url: &Url) -> Result<Self, CassandraError> {
        let prepare = &Prepare::new(session, url);
        let (existing, totals, newest_day, days, newest, points, oldest, shards, shards_set, add_day, others) =
            try_join!(
                prepare.read("SELECT id, users FROM counted WHERE shard = ? AND id IN ?"),
                prepare.read("SELECT DISTINCT shard, users FROM counted WHERE shard IN ?"),
                prepare.read("SELECT day FROM history_days WHERE only_row = 0 LIMIT 1"),
                prepare.read("SELECT day FROM history_days WHERE only_row = 0 AND day >= ? AND day <= ?"),
                prepare.read("SELECT newest_time, newest_count FROM history WHERE day = ? LIMIT 1"),
                prepare.read(
                    "SELECT time, user_count FROM history WHERE day = ?
                 AND (time, user_count) < (?, ?) AND (time, user_count) > (?, ?) LIMIT ?",
                ),
                prepare.read(
                    "SELECT time, user_count FROM history WHERE day = ? AND time >= ?
                 ORDER BY time ASC, user_count ASC LIMIT 1",
                ),
                prepare.read(SHARDS),
                prepare.serial_read(SHARDS),
                // Idempotent.
                prepare.read("INSERT INTO history_days (only_row, day) VALUES (0, ?) USING TTL ?"),
                prepare.writes(),
            )?;
        let [count_first, count_other, write_first, write_other, set_shards] = others;
        Ok(Self {
            existing,
            totals,
            count: [count_first, count_other],
            newest_day,
            days,
            add_day,
            newest,
            write: [write_first, write_other],
            points,
            oldest,
            shards,
            shards_set,
            set_shards,
            timeout: url.timeout,
            serial: prepare.serial,
        })
    }

    /// A conditional batch that counts a number of new ids of a shard.
    pub(super) fn count(&self, new: usize) -> Batch {
        let [first, others] = &self.count;
        self.batch(first, others, new)
    }

    /// One conditional batch that writes a point.
    pub(super) fn write(&self) -> Batch {
        let [first, other] = &self.write;
        self.batch(first, other, 1)
    }

    fn batch(&self, first: &PreparedStatement, other: &PreparedStatement, others: usize) -> Batch {
        let first = std::iter::once(first.clone());
        let all = first.chain(std::iter::repeat_n(other.clone(), others)).map(Into::into);
        // All in one partition, so that it is applied atomically.
        let mut batch = Batch::new_with_statements(BatchType::Unlogged, all.collect());
        batch.set_consistency(self.count[0].get_consistency().unwrap_or(Consistency::Quorum));
        batch.set_serial_consistency(Some(self.serial));
        batch.set_request_timeout(Some(self.timeout));
        batch.set_retry_policy(Some(Arc::new(FallthroughRetryPolicy::new())));
        batch
    }
}

/// Prepares statements with what all of them have in common.
struct Prepare<'a> {
    session: &'a Session,
    url: &'a Url,
    plain: Consistency,
    serial: SerialConsistency,
    serial_read: Consistency,
}

impl<'a> Prepare<'a> {
    fn new(session: &'a Session, url: &'a Url) -> Self {
        let (plain, serial, serial_read) = match url.scope {
            Scope::Cluster => (Consistency::Quorum, SerialConsistency::Serial, Consistency::Serial),
            Scope::Datacenter(_) => {
                (Consistency::LocalQuorum, SerialConsistency::LocalSerial, Consistency::LocalSerial)
            }
        };
        Self { session, url, plain, serial, serial_read }
    }

    async fn writes(&self) -> Result<[PreparedStatement; 5], CassandraError> {
        let (count_first, count_other, write_first, write_other, set_shards) = try_join!(
            self.write("UPDATE counted SET users = ? WHERE shard = ? IF users = ?"),
            self.write("INSERT INTO counted (shard, id) VALUES (?, ?)"),
            self.write(
                "UPDATE history USING TTL ? SET newest_time = ?, newest_count = ? WHERE day = ?
                 IF newest_time = ? AND newest_count = ?",
            ),
            self.write("INSERT INTO history (day, time, user_count) VALUES (?, ?, ?) USING TTL ?"),
            self.write("INSERT INTO settings (name, value) VALUES ('shards', ?) IF NOT EXISTS"),
        )?;
        Ok([count_first, count_other, write_first, write_other, set_shards])
    }

    async fn read(&self, text: &str) -> Result<PreparedStatement, CassandraError> {
        let mut statement = self.write(text).await?;
        statement.set_is_idempotent(true);
        statement.set_retry_policy(None);
        Ok(statement)
    }

    async fn serial_read(&self, text: &str) -> Result<PreparedStatement, CassandraError> {
        let mut statement = self.read(text).await?;
        statement.set_consistency(self.serial_read);
        Ok(statement)
    }

    async fn write(&self, text: &str) -> Result<PreparedStatement, CassandraError> {
        let keyspace = &self.url.keyspace;
        let text = text.replace("FROM ", &format!("FROM \"{keyspace}\"."));
        let text = text.replace("INTO ", &format!("INTO \"{keyspace}\"."));
        let text = text.replace("UPDATE ", &format!("UPDATE \"{keyspace}\"."));
        let mut statement = self.session.prepare(text).await?;
        statement.set_consistency(self.plain);
        statement.set_serial_consistency(Some(self.serial));
        statement.set_request_timeout(Some(self.url.timeout));
        // This crate handles unknown outcomes, not the driver.
        statement.set_retry_policy(Some(Arc::new(FallthroughRetryPolicy::new())));
        Ok(statement)
    }
}
