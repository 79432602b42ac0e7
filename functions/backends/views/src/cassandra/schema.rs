//! Keyspace and tables, created by the first process; concurrent creation is safe.

use std::time::{Duration, Instant};

use backon::{ConstantBuilder, Retryable};
use futures_util::{future::try_join_all, try_join};
use scylla::{client::session::Session, errors::ExecutionError, statement::prepared::PreparedStatement};

use super::{
    answer::{Outcome, Rows},
    clock::Clock,
    error::CassandraError,
    statements::Statements,
    url::Url,
};

/// `counted` holds the counted ids and their number per shard, `history` one partition per day with its newest point,
/// `history_days` the days that have points.
const TABLES: [(&str, &str); 4] = [
    ("counted", "(shard int, id blob, users bigint static, PRIMARY KEY (shard, id))"),
    (
        "history",
        "(day int, time bigint, user_count bigint, newest_time bigint static, newest_count bigint static,
          PRIMARY KEY (day, time, user_count)) WITH CLUSTERING ORDER BY (time DESC, user_count DESC)
         AND compaction = {'class': 'TimeWindowCompactionStrategy',
                           'compaction_window_unit': 'DAYS', 'compaction_window_size': '1'}",
    ),
    (
        "history_days",
        "(only_row int, day int, PRIMARY KEY (only_row, day)) WITH CLUSTERING ORDER BY (day DESC)",
    ),
    ("settings", "(name text PRIMARY KEY, value int)"),
];
/// Default number of shards of a new keyspace.
const SHARDS: i32 = 4;
/// The schema is checked again at this interval while others are creating it.
const RETRIES: ConstantBuilder =
    ConstantBuilder::new().with_delay(Duration::from_millis(50)).without_max_times();
/// How long the check is retried.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);

/// Ensures that the tables exist; returns the prepared statements and the number of shards.
pub(super) async fn ready(
    session: &Session,
    url: &Url,
    clock: &Clock,
) -> Result<(Statements, i32), CassandraError> {
    let deadline = Instant::now() + RETRY_TIMEOUT;
    let attempt = || async {
        create(session, url).await?;
        let statements = Statements::prepare(session, url).await?;
        let shards = agree_on_shards(session, &statements, url, clock).await?;
        Ok((statements, shards))
    };
    // When several processes create a table at once, some are told that it changed, exists already, or does not exist
    // yet. Check again.
    let may_retry = |error: &CassandraError| {
        matches!(error, CassandraError::Execute(_) | CassandraError::Prepare(_))
            && !error.is_disconnected()
            && !error.is_refused()
            && Instant::now() < deadline
    };
    attempt
        .retry(RETRIES)
        .when(may_retry)
        .notify(|error, _| tracing::debug!(%error, "the schema is checked again"))
        .await
}

/// A light query of a majority of the replicas: could an id be counted now? Also returns the server's time.
pub(super) async fn check(
    session: &Session,
    statements: &Statements,
    clock: &Clock,
) -> Result<(), CassandraError> {
    read_shards(session, &statements.shards, clock).await.map(drop)
}

/// The number of shards, fixed once it was set.
async fn agree_on_shards(
    session: &Session,
    statements: &Statements,
    url: &Url,
    clock: &Clock,
) -> Result<i32, CassandraError> {
    if let Some(shards) = read_shards(session, &statements.shards, clock).await? {
        return Ok(shards);
    }
    let shards = url.shards.unwrap_or(SHARDS);
    let set = session.execute_unpaged(&statements.set_shards, (shards,)).await?;
    match Outcome::of(set)? {
        Outcome::Applied => Ok(shards),
        Outcome::Lost => Ok(read_shards(session, &statements.shards_set, clock).await?.unwrap_or(0)),
    }
}

async fn read_shards(
    session: &Session,
    statement: &PreparedStatement,
    clock: &Clock,
) -> Result<Option<i32>, CassandraError> {
    let rows = Rows::of(session.execute_unpaged(statement, ()).await?)?;
    let row = rows.first::<(i32, i64)>()?;
    if let Some((_, server_ms)) = row {
        clock.set(server_ms);
    }
    Ok(row.map(|(shards, _)| shards))
}

/// Does nothing if all tables exist, so that a user without permission to create them can start.
async fn create(session: &Session, url: &Url) -> Result<(), CassandraError> {
    // The name contains only a-z, 0-9 and _. Inlining it saves a round trip for preparing.
    let keyspace = &url.keyspace;
    let names = async |query: &str| {
        let rows = Rows::of(session.query_unpaged(format!("{query} = '{keyspace}'"), ()).await?)?;
        let names = rows.all::<(String,)>()?.into_iter().map(|(name,)| name).collect::<Vec<_>>();
        Ok::<_, CassandraError>(names)
    };
    let (existing, keyspaces) = try_join!(
        names("SELECT table_name FROM system_schema.tables WHERE keyspace_name"),
        names("SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name"),
    )?;
    let missing: Vec<_> = TABLES.iter().filter(|(name, _)| !existing.iter().any(|t| t == name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if keyspaces.is_empty() {
        session.query_unpaged(create_keyspace(url), ()).await?;
        wait_for_agreement(session).await?;
    }
    try_join_all(missing.into_iter().map(async |(name, columns)| {
        let create = format!("CREATE TABLE IF NOT EXISTS \"{keyspace}\".{name} {columns}");
        session.query_unpaged(create, ()).await.map(drop)
    }))
    .await?;
    wait_for_agreement(session).await
}

fn create_keyspace(url: &Url) -> String {
    let (keyspace, factor) = (&url.keyspace, url.replication_factor);
    let replication = match &url.datacenter {
        Some(datacenter) => format!("'class': 'NetworkTopologyStrategy', '{datacenter}': {factor}"),
        None => format!("'class': 'SimpleStrategy', 'replication_factor': {factor}"),
    };
    format!("CREATE KEYSPACE IF NOT EXISTS \"{keyspace}\" WITH replication = {{{replication}}}")
}

/// Waits until all nodes have the same schema. One node agrees with itself, which saves round trips.
async fn wait_for_agreement(session: &Session) -> Result<(), CassandraError> {
    if session.get_cluster_state().get_nodes_info().len() > 1 {
        session.await_schema_agreement().await.map_err(ExecutionError::from)?;
    }
    Ok(())
}
