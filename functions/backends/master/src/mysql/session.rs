//! Connections to the server: what each session asks of it, and which connections are thrown away.

use std::{future::Future, io, time::Duration};

use sqlx::{
    ConnectOptions, MySqlPool,
    mysql::{MySqlConnectOptions, MySqlDatabaseError, MySqlPoolOptions},
    pool::PoolConnection,
};

/// How long a request waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that was idle for longer is replaced: the server hangs up soon after.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was used so recently is not tested again.
const FRESH: Duration = Duration::from_secs(1);
/// How long the test of an idle connection may take; a peer that is gone does not answer.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an attempt to find out why there is no connection may take.
const DIAGNOSIS_TIMEOUT: Duration = Duration::from_secs(1);
/// Error numbers of a deadlock and of a lock that was waited for too long: the connection is as it was.
const ROLLED_BACK: [u16; 2] = [1213, 1205];

/// One round trip. The server ends a session that is silent for 8 s inside a transaction (MariaDB) or for 10 s at all,
/// and with it the locks of a client that is gone. READ COMMITTED takes fewer locks than the default, and is all that
/// storing needs.
const SETTINGS: &str =
    "SET SESSION wait_timeout = 10, SESSION net_read_timeout = 10, SESSION net_write_timeout = 10,
        SESSION innodb_lock_wait_timeout = 3 /*M!100301 , SESSION idle_transaction_timeout = 8 */;
    SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// Connects when first needed.
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
        // Character set and the rest are those of the handshake, which saves a round trip.
        .connect_lazy_with(
            options
                .pipes_as_concat(false)
                .no_engine_substitution(false)
                .timezone(None)
                .set_names(false)
                .disable_statement_logging(),
        )
}

/// A connection of the pool. Names the reason when there is none.
pub(super) async fn acquire(pool: &MySqlPool) -> Result<PoolConnection<sqlx::MySql>, sqlx::Error> {
    match pool.acquire().await {
        Err(sqlx::Error::PoolTimedOut) => {
            // The pool keeps trying while a connection is refused, and forgets why.
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

/// Waits for an answer of the server, for so long at most.
pub(super) async fn bounded<T>(
    timeout: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let answered = tokio::time::timeout(timeout, answer).await;
    answered.unwrap_or_else(|_| Err(timed_out("the server took too long")))
}

/// Closes the connection after an error that leaves its state unknown; otherwise it goes back to the pool. Work on it in a
/// task that runs to its end: sqlx loses track of an answer that nobody waits for.
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
