//! Creates missing tables. Checks first, in one round trip, and locks only if a migration is pending.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Executor, MySqlConnection, MySqlPool, Row,
    migrate::{MigrateError, Migration, Migrator},
};

use super::session;
use crate::MasterError;

/// How often a process checks whether another one has created the tables.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Timeout for creating them, in whichever process.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Error number of a missing table.
const NO_TABLE: u16 = 1146;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/mysql");

const RECORDS: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
)";

/// Migrates to the newest schema. Call it in a task that is never cancelled.
pub(super) async fn run(pool: &MySqlPool) -> Result<(), MasterError> {
    let mut connection = session::acquire(pool).await?;
    let work = async {
        while !pending(&mut connection).await?.is_empty() {
            if try_lock(&mut connection).await? {
                return apply(&mut connection).await.map(|()| true);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(false)
    };
    let locked = tokio::time::timeout(TIMEOUT, work).await.unwrap_or(Err(sqlx::Error::PoolTimedOut.into()));
    if !matches!(locked, Ok(false)) {
        // The lock belongs to this connection, which is closed and never returned to the pool.
        drop(connection.detach());
    }
    locked.map(drop)
}

/// Migrations that are not recorded as applied, including one that an earlier program left half done.
async fn pending(connection: &mut MySqlConnection) -> Result<Vec<&'static Migration>, MasterError> {
    let done: Vec<i64> =
        match connection.fetch_all("SELECT version FROM _sqlx_migrations WHERE success").await {
            Ok(rows) => rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?,
            Err(error) if session::number(&error) == Some(NO_TABLE) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
    if let Some(newer) = done.iter().find(|version| MIGRATIONS.iter().all(|known| known.version != **version))
    {
        return Err(MigrateError::VersionMissing(*newer).into());
    }
    Ok(MIGRATIONS.iter().filter(|migration| !done.contains(&migration.version)).collect())
}

async fn try_lock(connection: &mut MySqlConnection) -> Result<bool, MasterError> {
    let lock = "SELECT COALESCE(GET_LOCK(CONCAT('migrate:', MD5(DATABASE())), 0), 0)";
    let locked: i64 = connection.fetch_one(lock).await?.try_get(0)?;
    Ok(locked == 1)
}

/// Each migration is idempotent and recorded afterwards, so an interrupted one is applied again.
async fn apply(connection: &mut MySqlConnection) -> Result<(), MasterError> {
    // Another process may have finished between the check and the lock.
    for migration in pending(connection).await? {
        let checksum: String = migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
        let statements = format!(
            "{RECORDS};\n{}\n;INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ({}, '{}', TRUE, X'{checksum}', 0)
             ON DUPLICATE KEY UPDATE success = TRUE, checksum = VALUES(checksum)",
            migration.sql.as_str().trim_end().trim_end_matches(';'),
            migration.version,
            migration.description,
        );
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *connection).await?;
    }
    Ok(())
}
