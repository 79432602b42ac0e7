//! `store`: keeps every user as received in the master dataset; the first user of an id wins. Depends on the master
//! only.

use std::{process::ExitCode, sync::Arc};

use backend_master::{Master, Stored};
use domain::User;
use framework::{
    config::Config,
    error::{Error, Rejection},
    group::GroupCommit,
    offload,
    router::{Request, Response, Router, empty},
    serve, user_event,
};
use http::{Method, StatusCode};

/// Maximum number of users per commit.
const GROUP: usize = 1_000;

/// Runs the function until SIGTERM.
pub fn run() -> ExitCode {
    serve::run("store", |config: &Config| {
        let master = backend_master::open(&config.master_url()?)?;
        Ok(routes(master).guarded(config.event_token()?))
    })
}

/// The function's routes over the master dataset. Call it inside a runtime: the group commit works there.
#[must_use]
pub fn routes(master: Arc<dyn Master>) -> Router {
    let ready = master.clone();
    let stores = GroupCommit::new(GROUP, master.commits_at_once(), move |users: Vec<User>| {
        let master = master.clone();
        async move { master.store(users).await.map_err(|e| Error::unavailable(&e)) }
    });
    let progress = stores.progress();
    Router::new(move || {
        let master = ready.clone();
        async move { master.ready().await.map_err(|e| Error::unavailable(&e)) }
    })
    .watching(progress)
    .route(Method::POST, "/", move |request| store(stores.clone(), request))
}

async fn store(stores: GroupCommit<User, Stored>, request: Request) -> Result<Response, Error> {
    let users = offload::run(request.body.len(), move || users(&request)).await?;
    if users.is_empty() {
        return Ok(empty(StatusCode::NO_CONTENT));
    }
    let outcomes = stores.submit(users.clone()).await?;
    for (index, (user, outcome)) in users.iter().zip(outcomes).enumerate() {
        if let Stored::Conflict { kept } = outcome {
            return Err(user_event::at_index(conflict(user, &kept), index, users.len()).into());
        }
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

fn users(request: &Request) -> Result<Vec<User>, Error> {
    user_event::users_from_http(&request.headers, &request.body)
}

/// 422 and not 409: a 409 is retried, and this can never succeed.
fn conflict(user: &User, kept: &str) -> Rejection {
    Rejection::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        format!(
            "the user {} is stored with the name {kept:?} already, which stays; {:?} needs an id of its own",
            user.id, user.name
        ),
    )
}
