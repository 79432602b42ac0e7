//! `ingest`: accepts users as JSON and CloudEvents, and answers once the log has them durably. Depends on the log only.

use std::{process::ExitCode, sync::Arc};

use backend_log::Appender;
use event::Record;
use framework::{
    config::Config,
    error::Error,
    group::GroupCommit,
    offload,
    progress::Progress,
    router::{Request, Response, Router, State, empty, json},
    serve, user_event,
};
use http::StatusCode;

/// Maximum number of records per commit.
const GROUP: usize = 256;

/// Runs the function until SIGTERM.
pub fn run() -> ExitCode {
    serve::run("ingest", |config: &Config| {
        let url = config.log_url()?;
        Ok(routes(backend_log::open(&url)?, backend_log::topic(&url)))
    })
}

/// The function's routes over a log's topic. Requires a tokio runtime for the group commit.
#[must_use]
pub fn routes(log: Arc<dyn Appender>, topic: String) -> Router<Ingest> {
    Router::new(Ingest::new(log, topic)).post("/user", user).post("/", cloud_events)
}

/// What the handlers share.
#[derive(Clone)]
pub struct Ingest {
    log: Arc<dyn Appender>,
    appends: Appends,
}

impl Ingest {
    fn new(log: Arc<dyn Appender>, topic: String) -> Self {
        let appends = {
            let log = log.clone();
            GroupCommit::new(GROUP, log.writes_at_once(), move |records: Vec<Record>| {
                let (log, topic) = (log.clone(), topic.clone());
                async move { append(&*log, &topic, records).await }
            })
        };
        Self { log, appends }
    }

    async fn append(&self, records: Vec<Record>) -> Result<(), Error> {
        self.appends.submit(records).await?.into_iter().collect()
    }
}

impl State for Ingest {
    async fn ready(&self) -> Result<(), Error> {
        self.log.ready().await
    }

    fn progress(&self) -> Option<Progress> {
        Some(self.appends.progress())
    }
}

/// Each record has an outcome of its own.
type Appends = GroupCommit<Record, Result<(), Error>>;

/// Appends records of many requests at once. If the log rejects one of them, appends each alone, so that the others do
/// not fail with it. Records that were already written are written again, which is safe for users.
async fn append(
    log: &dyn Appender,
    topic: &str,
    records: Vec<Record>,
) -> Result<Vec<Result<(), Error>>, Error> {
    let count = records.len();
    let rejected = match log.append(topic, records.clone()).await.map_err(Error::from) {
        Ok(()) => return Ok(vec![Ok(()); count]),
        Err(rejected @ Error::Rejected(_)) => rejected,
        Err(error) => return Err(error),
    };
    if count == 1 {
        return Ok(vec![Err(rejected)]);
    }
    let mut outcomes = Vec::with_capacity(count);
    for record in records {
        outcomes.push(log.append(topic, vec![record]).await.map_err(Error::from));
    }
    Ok(outcomes)
}

async fn user(state: Ingest, request: Request) -> Result<Response, Error> {
    let media_type = event::media_type(&request.headers);
    if media_type != "application/json" {
        return Err(user_event::unsupported(format!(
            "send `Content-Type: application/json`, not `{media_type}`"
        ))
        .into());
    }
    let user = user_event::user_from_json(&request.body)?;
    let record = user_event::to_record(&user_event::ingested(&user, &request.headers)?, &user);
    state.append(vec![record]).await?;
    Ok(json(StatusCode::CREATED, &user))
}

async fn cloud_events(state: Ingest, request: Request) -> Result<Response, Error> {
    let records = offload::run(request.body.len(), move || records(&request)).await?;
    if !records.is_empty() {
        state.append(records).await?;
    }
    Ok(empty(StatusCode::ACCEPTED))
}

fn records(request: &Request) -> Result<Vec<Record>, Error> {
    let admitted = user_event::admitted_from_http(&request.headers, &request.body)?;
    Ok(admitted.iter().map(|(event, user)| user_event::to_record(event, user)).collect())
}
