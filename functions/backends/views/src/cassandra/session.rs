//! The session of a process: opened lazily in the background, and replaced when it becomes unusable.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use scylla::{
    client::{
        PoolSize, execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder,
    },
    policies::load_balancing::DefaultPolicy,
};
use tokio::sync::watch;

use super::{
    CassandraError,
    clock::Clock,
    count::Turn,
    history::Day,
    schema,
    statements::Statements,
    tls,
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
/// Delay before the second attempt to open a session; doubles with each failure.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// Longest delay between two attempts, which bounds how long a recovered store waits.
const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// A session that fails sooner counts as another failed attempt.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The result of an attempt to open a session; `None` while it runs.
type Attempt = Option<Result<Arc<Open>, CassandraError>>;

/// The keyspace's address, and the session once opened. Clones share it.
#[derive(Clone)]
pub(super) struct Connection(Arc<Shared>);

struct Shared {
    url: Url,
    clock: Clock,
    /// Never held across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    phase: Phase,
    /// Failed attempts since a session was last stable.
    failures: u32,
}

#[derive(Default)]
enum Phase {
    #[default]
    Closed,
    /// A background task opens the session. Callers only watch it, so that giving up cancels nothing.
    Opening(watch::Receiver<Attempt>),
    Open {
        open: Arc<Open>,
        since: Instant,
    },
    /// Until `retry_at` all callers get the error.
    Failed {
        error: CassandraError,
        retry_at: Instant,
    },
}

/// A session, and what was learned through it.
pub(super) struct Open {
    pub(super) session: Session,
    pub(super) statements: Statements,
    pub(super) clock: Clock,
    /// One a shard.
    pub(super) turns: Vec<Turn>,
    /// The day that points are written into.
    pub(super) day: tokio::sync::Mutex<Option<Day>>,
}

impl Connection {
    pub(super) fn new(url: Url, clock: Clock) -> Self {
        Self(Arc::new(Shared { url, clock, state: Mutex::default() }))
    }

    /// The session. If there is none, waits up to the timeout for the background task that opens it.
    pub(super) async fn get(&self, patience: Duration) -> Result<Arc<Open>, CassandraError> {
        let mut attempt = match self.0.open_or_attempt() {
            Ok(done) => return done,
            Err(attempt) => attempt,
        };
        let outcome = tokio::time::timeout(patience, attempt.wait_for(Option::is_some)).await;
        match outcome {
            Err(_) => Err(CassandraError::Opening(patience)),
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Err(CassandraError::GivenUp)),
            Ok(Err(_)) => Err(CassandraError::GivenUp),
        }
    }

    /// Passes a result on. If it puts the session in doubt, the next caller gets a new one.
    pub(super) fn keep<T>(
        &self,
        open: &Arc<Open>,
        outcome: Result<T, CassandraError>,
    ) -> Result<T, CassandraError> {
        if let Err(error) = &outcome
            && error.is_session_suspect()
        {
            self.0.replace(open, error);
        }
        outcome
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The known state, or the attempt in flight, which is started if there is none.
    fn open_or_attempt(
        self: &Arc<Self>,
    ) -> Result<Result<Arc<Open>, CassandraError>, watch::Receiver<Attempt>> {
        let mut state = self.state();
        match &state.phase {
            Phase::Open { open, .. } => return Ok(Ok(open.clone())),
            Phase::Failed { error, retry_at } if Instant::now() < *retry_at => return Ok(Err(error.clone())),
            // The task ends without a result if its runtime is gone.
            Phase::Opening(attempt) if attempt.has_changed().is_ok() => return Err(attempt.clone()),
            Phase::Closed | Phase::Failed { .. } | Phase::Opening(_) => {}
        }
        let (result, attempt) = watch::channel(None);
        state.phase = Phase::Opening(attempt.clone());
        let shared = self.clone();
        tokio::spawn(async move {
            let opened = open(&shared.url, &shared.clock).await.map(Arc::new);
            shared.settle(&opened);
            result.send_replace(Some(opened));
        });
        Err(attempt)
    }

    fn settle(&self, opened: &Result<Arc<Open>, CassandraError>) {
        let mut state = self.state();
        match opened {
            Ok(open) => state.phase = Phase::Open { open: open.clone(), since: Instant::now() },
            Err(error) => state.fail(error),
        }
    }

    /// Discards a session, unless that has happened already.
    fn replace(&self, suspect: &Arc<Open>, error: &CassandraError) {
        let mut state = self.state();
        let Phase::Open { open, since } = &state.phase else { return };
        if !Arc::ptr_eq(open, suspect) {
            return;
        }
        tracing::warn!(%error, "the Cassandra session is replaced");
        if since.elapsed() >= STABLE_AFTER {
            state.failures = 0;
            state.phase = Phase::Closed;
        } else {
            // Unusable although new: the session is not the cause.
            state.fail(error);
        }
    }
}

impl State {
    fn fail(&mut self, error: &CassandraError) {
        let backoff = MIN_BACKOFF.saturating_mul(1 << self.failures.min(10)).min(MAX_BACKOFF);
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Failed { error: error.clone(), retry_at: Instant::now() + backoff };
    }
}

impl Open {
    /// Asks the server for its time, if that was long ago.
    pub(super) async fn refresh_clock(&self) -> Result<(), CassandraError> {
        match self.clock.is_stale() {
            true => schema::check(&self.session, &self.statements, &self.clock).await,
            false => Ok(()),
        }
    }
}

async fn open(url: &Url, clock: &Clock) -> Result<Open, CassandraError> {
    let session = tokio::time::timeout(SESSION_TIMEOUT, connect(url)).await;
    let session = session.map_err(|_| CassandraError::NoAnswer(SESSION_TIMEOUT))??;
    let ready = tokio::time::timeout(SCHEMA_TIMEOUT, schema::ready(&session, url, clock)).await;
    let (statements, shards) = ready.map_err(|_| CassandraError::NoAnswer(SCHEMA_TIMEOUT))??;
    match url.shards {
        Some(asked) if asked != shards => Err(CassandraError::Shards { asked, found: shards }),
        _ => {
            let turns = (0..shards).map(|_| Turn::default()).collect();
            let clock = clock.clone();
            Ok(Open { session, statements, clock, turns, day: tokio::sync::Mutex::default() })
        }
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
