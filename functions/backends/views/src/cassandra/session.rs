//! The connections of a process: opened when first needed, and anew once they are of no more use.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use scylla::{
    client::{
        PoolSize, execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder,
    },
    policies::load_balancing::DefaultPolicy,
};
use tokio::sync::Mutex;

use super::{
    CassandraError,
    count::Turn,
    history::Day,
    schema,
    statements::Statements,
    tls,
    url::{Scope, Url},
};

/// How long a node may take to accept a connection and to greet.
const CONNECT: Duration = Duration::from_secs(2);
/// How long finding out about the cluster may take.
const OPEN: Duration = Duration::from_secs(4);

/// Where the keyspace is, and the way there once it was needed.
pub(super) struct Connection {
    url: Url,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<Arc<Open>>,
    failed: Option<(Instant, CassandraError)>,
}

/// Connections, and what is known through them.
pub(super) struct Open {
    pub(super) session: Session,
    pub(super) statements: Statements,
    /// One a shard.
    pub(super) turns: Vec<Turn>,
    /// The day that points are written into.
    pub(super) day: Mutex<Option<Day>>,
}

impl Connection {
    pub(super) fn new(url: Url) -> Self {
        Self { url, state: Mutex::default() }
    }

    /// The connections, which are opened when there are none.
    pub(super) async fn get(&self) -> Result<Arc<Open>, CassandraError> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(open) = &state.open {
            return Ok(open.clone());
        }
        // Who waited while another tried in vain need not try in vain as well.
        if let Some((at, error)) = &state.failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        match open(&self.url).await {
            Ok(open) => Ok(state.open.insert(Arc::new(open)).clone()),
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Gives an outcome on; when it says that nothing is connected, the next call connects anew, without waiting until
    /// the driver finds it time to.
    pub(super) async fn keep<T>(
        &self,
        open: &Arc<Open>,
        outcome: Result<T, CassandraError>,
    ) -> Result<T, CassandraError> {
        if outcome.as_ref().is_err_and(CassandraError::is_disconnected) {
            let mut state = self.state.lock().await;
            state.open.take_if(|current| Arc::ptr_eq(current, open));
        }
        outcome
    }
}

async fn open(url: &Url) -> Result<Open, CassandraError> {
    let session = connect(url);
    let session = tokio::time::timeout(OPEN, session).await.map_err(|_| CassandraError::NoAnswer(OPEN))??;
    let statements = schema::ready(&session, url).await?;
    let shards = schema::shards(&session, &statements).await?;
    match url.shards {
        Some(asked) if asked != shards => Err(CassandraError::Shards { asked, found: shards }),
        _ => {
            let turns = (0..shards).map(|_| Turn::default()).collect();
            Ok(Open { session, statements, turns, day: Mutex::default() })
        }
    }
}

async fn connect(url: &Url) -> Result<Session, CassandraError> {
    let policy = match &url.scope {
        Scope::Cluster => DefaultPolicy::builder(),
        // Another datacenter decides for itself, and would count the same once more.
        Scope::Datacenter(name) => DefaultPolicy::builder().prefer_datacenter(name.clone()),
    };
    let profile = ExecutionProfile::builder()
        .load_balancing_policy(policy.permit_dc_failover(false).build())
        .speculative_execution_policy(None)
        .request_timeout(Some(url.timeout))
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&url.hosts)
        .default_execution_profile_handle(profile.into_handle())
        .connection_timeout(CONNECT)
        .hostname_resolution_timeout(Some(CONNECT))
        .pool_size(PoolSize::PerShard(NonZeroUsize::MIN))
        .keyspaces_to_fetch([&url.keyspace])
        .fetch_full_schema_metadata(false)
        .tls_context(tls::context(&url.tls)?);
    if let Some((user, password)) = &url.user {
        builder = builder.user(user, password);
    }
    Ok(builder.build().await?)
}
