//! Every statement, prepared once a session. None is repeated by the driver unless repeating it changes nothing.

use std::{sync::Arc, time::Duration};

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
    CassandraError,
    url::{Scope, Url},
};

/// The statements of a session.
pub(super) struct Statements {
    /// `shard`, `ids` → `id`, `users`.
    pub(super) there: PreparedStatement,
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
    /// → `value`.
    pub(super) shards: PreparedStatement,
    /// `value`.
    pub(super) set_shards: PreparedStatement,
    timeout: Duration,
    serial: SerialConsistency,
}

impl Statements {
    pub(super) async fn prepare(session: &Session, url: &Url) -> Result<Self, CassandraError> {
        let (plain, serial, serial_read) = match url.scope {
            Scope::Cluster => (Consistency::Quorum, SerialConsistency::Serial, Consistency::Serial),
            Scope::Datacenter(_) => {
                (Consistency::LocalQuorum, SerialConsistency::LocalSerial, Consistency::LocalSerial)
            }
        };
        let prepare = async |text: &str, consistency: Consistency| {
            let text = text.replace("FROM ", &format!("FROM \"{}\".", url.keyspace));
            let text = text.replace("INTO ", &format!("INTO \"{}\".", url.keyspace));
            let text = text.replace("UPDATE ", &format!("UPDATE \"{}\".", url.keyspace));
            let mut statement = session.prepare(text).await?;
            statement.set_consistency(consistency);
            statement.set_serial_consistency(Some(serial));
            statement.set_request_timeout(Some(url.timeout));
            // What follows an unknown outcome is decided here and not by the driver.
            statement.set_retry_policy(Some(Arc::new(FallthroughRetryPolicy::new())));
            Ok::<_, CassandraError>(statement)
        };
        let read = async |text: &str, consistency: Consistency| {
            let mut statement = prepare(text, consistency).await?;
            statement.set_is_idempotent(true);
            statement.set_retry_policy(None);
            Ok::<_, CassandraError>(statement)
        };
        Ok(Self {
            there: read("SELECT id, users FROM counted WHERE shard = ? AND id IN ?", plain).await?,
            totals: read("SELECT DISTINCT shard, users FROM counted WHERE shard IN ?", plain).await?,
            count: [
                prepare("UPDATE counted SET users = ? WHERE shard = ? IF users = ?", plain).await?,
                prepare("INSERT INTO counted (shard, id) VALUES (?, ?)", plain).await?,
            ],
            newest_day: read("SELECT day FROM history_days WHERE only_row = 0 LIMIT 1", plain).await?,
            days: read("SELECT day FROM history_days WHERE only_row = 0 AND day >= ? AND day <= ?", plain)
                .await?,
            add_day: read("INSERT INTO history_days (only_row, day) VALUES (0, ?) USING TTL ?", plain)
                .await?,
            newest: read("SELECT newest_time, newest_count FROM history WHERE day = ? LIMIT 1", plain)
                .await?,
            write: [
                prepare(
                    "UPDATE history USING TTL ? SET newest_time = ?, newest_count = ? WHERE day = ?
                     IF newest_time = ? AND newest_count = ?",
                    plain,
                )
                .await?,
                prepare("INSERT INTO history (day, time, user_count) VALUES (?, ?, ?) USING TTL ?", plain)
                    .await?,
            ],
            points: read(
                "SELECT time, user_count FROM history WHERE day = ?
                 AND (time, user_count) < (?, ?) AND (time, user_count) > (?, ?) LIMIT ?",
                plain,
            )
            .await?,
            oldest: read(
                "SELECT time, user_count FROM history WHERE day = ? AND time >= ?
                 ORDER BY time ASC, user_count ASC LIMIT 1",
                plain,
            )
            .await?,
            shards: read("SELECT value FROM settings WHERE name = 'shards'", serial_read).await?,
            set_shards: prepare(
                "INSERT INTO settings (name, value) VALUES ('shards', ?) IF NOT EXISTS",
                plain,
            )
            .await?,
            timeout: url.timeout,
            serial,
        })
    }

    /// One conditional batch that counts so many new ids of a shard.
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
        // Of one partition, so that it is applied whole in any case.
        let mut batch = Batch::new_with_statements(BatchType::Unlogged, all.collect());
        batch.set_consistency(self.count[0].get_consistency().unwrap_or(Consistency::Quorum));
        batch.set_serial_consistency(Some(self.serial));
        batch.set_request_timeout(Some(self.timeout));
        batch.set_retry_policy(Some(Arc::new(FallthroughRetryPolicy::new())));
        batch
    }
}
