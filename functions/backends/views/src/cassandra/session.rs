//! The session of a process: opened in the background when first needed, and replaced once it is of no more use.

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
/// A connection that is silent for this long is asked whether it is alive, and closed if it does not answer as long.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Delay before the second attempt to open a session; doubles with each failure.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// Longest delay between two attempts: what a store that comes back has to wait for at most.
const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// A session that fails sooner than this counts as another failed attempt to open one.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// What an attempt to open a session came to; `None` while it goes on.
type Attempt = Option<Result<Arc<Open>, CassandraError>>;

/// Where the keyspace is, and the session once it was needed. Clones share it.
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
    /// Attempts that failed since a session was stable.
    failures: u32,
}

#[derive(Default)]
enum Phase {
    #[default]
    Closed,
    /// A task of its own opens a session; callers only watch it, so that giving up cancels nothing.
    Opening(watch::Receiver<Attempt>),
    Open {
        open: Arc<Open>,
        since: Instant,
    },
    /// Until `retry_at` everybody gets the error.
    Failed {
        error: CassandraError,
        retry_at: Instant,
    },
}

/// A session, and what is known through it.
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

    /// The session. Without one, waits at most so long for the background task that opens it.
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

    /// Passes an outcome on. If it leaves the session in doubt, the next caller gets a new one.
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

    /// What is known at once, else the attempt under way, which is started if there is none.
    fn open_or_attempt(
        self: &Arc<Self>,
    ) -> Result<Result<Arc<Open>, CassandraError>, watch::Receiver<Attempt>> {
        let mut state = self.state();
        match &state.phase {
            Phase::Open { open, .. } => return Ok(Ok(open.clone())),
            Phase::Failed { error, retry_at } if Instant::now() < *retry_at => return Ok(Err(error.clone())),
            // Its task ended without a result if the runtime that ran it is gone.
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

    /// Throws a session away, unless that was done already.
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
            // New, and of no use already: the cause is not the session.
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
        // Another datacenter decides for itself, and would count the same once more.
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
        // Done once, after all tables are created.
        .auto_await_schema_agreement(false)
        .tls_context(tls::context(&url.tls)?);
    if let Some((user, password)) = &url.user {
        builder = builder.user(user, password);
    }
    Ok(builder.build().await?)
}
