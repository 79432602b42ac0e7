//! Connections to the server: session settings, and which connections are discarded.

use std::{future::Future, io, time::Duration};

use sqlx::{
    ConnectOptions, MySqlPool,
    mysql::{MySqlConnectOptions, MySqlDatabaseError, MySqlPoolOptions},
    pool::PoolConnection,
};

/// Timeout of a storing transaction or a query.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// Older idle connections are replaced, because the server closes them soon after.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection used this recently is not pinged.
const FRESH: Duration = Duration::from_secs(1);
/// Timeout of the ping of an idle connection; a dead peer does not answer.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout for finding out why there is no connection.
const DIAGNOSIS_TIMEOUT: Duration = Duration::from_secs(1);
/// Error numbers of a deadlock and a lock wait timeout: the connection remains usable.
const ROLLED_BACK: [u16; 2] = [1213, 1205];

/// One round trip. The server ends a session after 8 s of silence inside a transaction (MariaDB) or 10 s outside, and
/// so releases the locks of a dead client. READ COMMITTED takes fewer locks than the default, and suffices here.
const SETTINGS: &str =
    "SET SESSION wait_timeout = 10, SESSION net_read_timeout = 10, SESSION net_write_timeout = 10,
        SESSION innodb_lock_wait_timeout = 3 /*M!100301 , SESSION idle_transaction_timeout = 8 */;
    SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// Connects lazily.
pub(super) fn pool(options: MySqlConnectOptions, connections: u32) -> MySqlPool {
    MySqlPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(IDLE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for < FRESH {
                    return Ok(true);
                }
                let ping = sqlx::Connection::ping(connection);
                let answered = tokio::time::timeout(PING_TIMEOUT, ping).await;
                Ok(meta.idle_for < IDLE_TIMEOUT && matches!(answered, Ok(Ok(()))))
            })
        })
        .after_connect(|connection, _| {
            Box::pin(async move { sqlx::raw_sql(SETTINGS).execute(connection).await.map(drop) })
        })
        // The handshake sets the character set, which saves a round trip.
        .connect_lazy_with(
            options
                .pipes_as_concat(false)
                .no_engine_substitution(false)
                .timezone(None)
                .set_names(false)
                .disable_statement_logging(),
        )
}

/// A connection of the pool, or the reason why there is none.
pub(super) async fn acquire(pool: &MySqlPool) -> Result<PoolConnection<sqlx::MySql>, sqlx::Error> {
    match pool.acquire().await {
        Err(sqlx::Error::PoolTimedOut) => {
            // The pool retries refused connections and discards the reason.
            let options = pool.connect_options();
            match tokio::time::timeout(DIAGNOSIS_TIMEOUT, options.connect()).await {
                Ok(Err(cause)) => Err(cause),
                Ok(Ok(_)) => Err(sqlx::Error::PoolTimedOut),
                Err(_) => Err(timed_out("the server does not answer")),
            }
        }
        acquired => acquired,
    }
}

/// Waits for the server's answer, with a timeout.
pub(super) async fn bounded<T>(
    timeout: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let answered = tokio::time::timeout(timeout, answer).await;
    answered.unwrap_or_else(|_| Err(timed_out("the server took too long")))
}

/// Closes the connection after an error that leaves its state unknown; otherwise returns it to the pool. Use it in a
/// task that is never cancelled: sqlx loses track of an abandoned answer.
pub(super) fn settle<T>(
    connection: PoolConnection<sqlx::MySql>,
    done: Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    if done.as_ref().is_err_and(|error| !number(error).is_some_and(|n| ROLLED_BACK.contains(&n))) {
        drop(connection.detach());
    }
    done
}

/// The server's number of an error.
pub(super) fn number(error: &sqlx::Error) -> Option<u16> {
    error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

fn timed_out(why: &str) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, why.to_owned()))
}
