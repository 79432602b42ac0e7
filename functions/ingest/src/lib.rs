//! `ingest`: takes users as JSON and CloudEvents, and answers once the log has them durably.
//! Knows the log; not who reads it.

use std::{process::ExitCode, sync::Arc};

use backend_log::Log;
use http::{Method, StatusCode};
use shared::{
    config::Config,
    error::Error,
    event,
    group::GroupCommit,
    offload,
    record::Record,
    router::{Request, Response, Router, empty, json},
    serve,
    user::User,
};

/// Most records of one commit.
const GROUP: usize = 256;

/// Runs the function until SIGTERM.
pub fn run() -> ExitCode {
    serve::run("ingest", |config: &Config| {
        let log = backend_log::open(&config.log_url)?;
        Ok(routes(log, backend_log::topic(&config.log_url)))
    })
}

/// The function's routes over a log's topic. Call it inside a runtime: the group commit works there.
#[must_use]
pub fn routes(log: Arc<dyn Log>, topic: String) -> Router {
    let ready = log.clone();
    let appends = GroupCommit::new(GROUP, log.commits_at_once(), move |records: Vec<Record>| {
        let (log, topic, count) = (log.clone(), topic.clone(), records.len());
        async move {
            log.append(&topic, records).await?;
            Ok(vec![(); count])
        }
    });
    let (events, progress) = (appends.clone(), appends.progress());
    Router::new(move || {
        let log = ready.clone();
        async move { Ok(log.ready().await?) }
    })
    .watching(progress)
    .route(Method::POST, "/user", move |request| user(appends.clone(), request))
    .route(Method::POST, "/", move |request| cloud_events(events.clone(), request))
}

async fn user(appends: GroupCommit<Record, ()>, request: Request) -> Result<Response, Error> {
    let media_type = event::media_type(&request.headers);
    if media_type != "application/json" {
        return Err(
            event::unsupported(format!("send `Content-Type: application/json`, not `{media_type}`")).into()
        );
    }
    let user = User::from_json(&request.body)?;
    let record = event::to_record(&event::ingested(&user, &request.headers), &user);
    appends.submit(vec![record]).await?;
    Ok(json(StatusCode::CREATED, &user))
}

async fn cloud_events(appends: GroupCommit<Record, ()>, request: Request) -> Result<Response, Error> {
    let records = offload::run(request.body.len(), move || records(&request)).await?;
    if !records.is_empty() {
        appends.submit(records).await?;
    }
    Ok(empty(StatusCode::ACCEPTED))
}

fn records(request: &Request) -> Result<Vec<Record>, Error> {
    let admitted = event::admitted_from_http(&request.headers, &request.body)?;
    Ok(admitted.iter().map(|(event, user)| event::to_record(event, user)).collect())
}
