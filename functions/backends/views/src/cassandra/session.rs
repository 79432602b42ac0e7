//! The session of a process: opened lazily in the background, and replaced when it becomes unusable.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use connect::Resource;
use scylla::{
    client::{
        PoolSize, execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder,
    },
    policies::load_balancing::DefaultPolicy,
};

use super::{
    clock::Clock,
    error::CassandraError,
    keyspace::Keyspace,
    schema, tls,
    url::{Scope, Url},
};

/// How long a node may take to accept a connection and to complete the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long connecting and learning about the cluster may take.
const SESSION_TIMEOUT: Duration = Duration::from_secs(4);
/// How long creating and checking the schema may take, while others create it too.
const SCHEMA_TIMEOUT: Duration = Duration::from_secs(60);
/// Keep-alive interval of an idle connection, and timeout of the response.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// The keyspace's address, and the session once opened. Clones share it.
#[derive(Clone)]
pub(super) struct Connection(Arc<Shared>);

struct Shared {
    url: Url,
    clock: Clock,
    session: Resource<Keyspace, CassandraError>,
}

impl Connection {
    pub(super) fn new(url: Url, clock: Clock) -> Self {
        Self(Arc::new(Shared { url, clock, session: Resource::default() }))
    }

    /// The session. If there is none, waits up to the timeout for the background task that opens it.
    pub(super) async fn get(&self, timeout: Duration) -> Result<Arc<Keyspace>, CassandraError> {
        let opening = || {
            let shared = self.0.clone();
            async move { open(&shared.url, &shared.clock).await }
        };
        let opened = tokio::time::timeout(timeout, self.0.session.get(opening)).await;
        opened.map_err(|_| CassandraError::Opening(timeout))?.map_err(Arc::unwrap_or_clone)
    }

    /// Passes a result on. If it puts the session in doubt, the next caller gets a new one.
    pub(super) fn keep<T>(
        &self,
        used: &Arc<Keyspace>,
        outcome: Result<T, CassandraError>,
    ) -> Result<T, CassandraError> {
        if let Err(error) = &outcome
            && error.is_session_suspect()
            && self.0.session.discard(used)
        {
            tracing::warn!(%error, "the Cassandra session is replaced");
        }
        outcome
    }
}

async fn open(url: &Url, clock: &Clock) -> Result<Keyspace, CassandraError> {
    let session = tokio::time::timeout(SESSION_TIMEOUT, connect(url)).await;
    let session = session.map_err(|_| CassandraError::NoAnswer(SESSION_TIMEOUT))??;
    let ready = tokio::time::timeout(SCHEMA_TIMEOUT, schema::ready(&session, url, clock)).await;
    let (statements, shards) = ready.map_err(|_| CassandraError::NoAnswer(SCHEMA_TIMEOUT))??;
    match url.shards {
        Some(asked) if asked != shards => Err(CassandraError::Shards { asked, found: shards }),
        _ => Ok(Keyspace::new(session, statements, clock.clone(), shards)),
    }
}

async fn connect(url: &Url) -> Result<Session, CassandraError> {
    let policy = match &url.scope {
        Scope::Cluster => DefaultPolicy::builder(),
        // Another datacenter would decide independently, and count the same id again.
        Scope::Datacenter(name) => DefaultPolicy::builder().prefer_datacenter(name.clone()),
    };
    let profile = ExecutionProfile::builder()
        .load_balancing_policy(policy.permit_dc_failover(false).build())
        .speculative_execution_policy(None)
        .request_timeout(Some(url.timeout))
        .build();
    // A new builder each time, so that host names are resolved anew.
    let mut builder = SessionBuilder::new()
        .known_nodes(&url.hosts)
        .default_execution_profile_handle(profile.into_handle())
        .connection_timeout(CONNECT_TIMEOUT)
        .hostname_resolution_timeout(Some(CONNECT_TIMEOUT))
        .keepalive_interval(KEEPALIVE_INTERVAL)
        .keepalive_timeout(KEEPALIVE_INTERVAL)
        .tcp_keepalive_interval(KEEPALIVE_INTERVAL)
        .pool_size(PoolSize::PerShard(NonZeroUsize::MIN))
        .keyspaces_to_fetch([&url.keyspace])
        .fetch_full_schema_metadata(false)
        // Once, after all tables were created.
        .auto_await_schema_agreement(false)
        .tls_context(tls::context(&url.tls)?);
    if let Some((user, password)) = &url.user {
        builder = builder.user(user, password);
    }
    Ok(builder.build().await?)
}
