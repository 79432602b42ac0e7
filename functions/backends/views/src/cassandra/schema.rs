//! The keyspace and its tables: created by whoever comes first, by several at once too.

use std::time::{Duration, Instant};

use scylla::client::session::Session;

use super::{CassandraError, answer::Rows, statements::Statements, url::Url};

/// `counted` has the ids that were counted, and how many they are in each shard; `history` a partition a day, which
/// knows its newest point; `history_days` the days that have points.
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
/// Shards of a new keyspace unless told otherwise.
const SHARDS: i32 = 4;
/// How long creating them may take while others create them too.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// The statements over the tables, which are there afterwards.
pub(super) async fn ready(session: &Session, url: &Url) -> Result<Statements, CassandraError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let created = async {
            create(session, url).await?;
            let statements = Statements::prepare(session, url).await?;
            let shards = url.shards.unwrap_or(SHARDS);
            if shards_set(session, &statements).await?.is_none() {
                session.execute_unpaged(&statements.set_shards, (shards,)).await?;
            }
            Ok(statements)
        };
        match created.await {
            // Of several that create a table at once, some may be told that it changed, is there already, or is not
            // there yet. Looking again tells.
            Err(error @ (CassandraError::Execute(_) | CassandraError::Prepare(_)))
                if !error.is_disconnected() && !error.is_refused() && Instant::now() < deadline =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

/// The number of shards that the keyspace was created with.
pub(super) async fn shards(session: &Session, statements: &Statements) -> Result<i32, CassandraError> {
    Ok(shards_set(session, statements).await?.unwrap_or(0))
}

async fn shards_set(session: &Session, statements: &Statements) -> Result<Option<i32>, CassandraError> {
    let rows = Rows::of(session.execute_unpaged(&statements.shards, ()).await?)?;
    Ok(rows.first::<(i32,)>()?.map(|(shards,)| shards))
}

/// Does nothing where all is there, so that a user need not be allowed to.
async fn create(session: &Session, url: &Url) -> Result<(), CassandraError> {
    let keyspace = &url.keyspace;
    let names = async |query: &str| {
        let rows = Rows::of(session.query_unpaged(query, (keyspace,)).await?)?;
        let names = rows.all::<(String,)>()?.into_iter().map(|(name,)| name).collect::<Vec<_>>();
        Ok::<_, CassandraError>(names)
    };
    let there = names("SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?").await?;
    if TABLES.iter().all(|(name, _)| there.iter().any(|t| t == name)) {
        return Ok(());
    }
    let keyspaces = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?";
    if names(keyspaces).await?.is_empty() {
        let factor = url.replication_factor;
        let replication = match &url.datacenter {
            Some(datacenter) => format!("'class': 'NetworkTopologyStrategy', '{datacenter}': {factor}"),
            None => format!("'class': 'SimpleStrategy', 'replication_factor': {factor}"),
        };
        let create =
            format!("CREATE KEYSPACE IF NOT EXISTS \"{keyspace}\" WITH replication = {{{replication}}}");
        session.query_unpaged(create, ()).await?;
    }
    for (name, columns) in TABLES {
        if !there.iter().any(|t| t == name) {
            let create = format!("CREATE TABLE IF NOT EXISTS \"{keyspace}\".{name} {columns}");
            session.query_unpaged(create, ()).await?;
        }
    }
    Ok(())
}
