//! `store`: keeps every user as received in the master dataset; the first user of an id wins. Depends on the master
//! only.

use std::{process::ExitCode, sync::Arc};

use backend_master::{Dataset, Stored};
use domain::User;
use framework::{
    config::Config,
    error::{Error, Rejection},
    group::GroupCommit,
    offload,
    progress::Progress,
    router::{Request, Response, Router, State, empty},
    serve, user_event,
};
use http::StatusCode;

/// Maximum number of users per commit.
const GROUP: usize = 1_000;

/// Runs the function until SIGTERM.
pub fn run() -> ExitCode {
    serve::run("store", |config: &Config| {
        let master = backend_master::open(&config.master_url()?)?;
        Ok(routes(master).guarded(config.event_token()?))
    })
}

/// The function's routes over the master dataset. Requires a tokio runtime for the group commit.
#[must_use]
pub fn routes(dataset: Arc<dyn Dataset>) -> Router<Store> {
    Router::new(Store::new(dataset)).post("/", store)
}

/// What the handlers share.
#[derive(Clone)]
pub struct Store {
    dataset: Arc<dyn Dataset>,
    commits: GroupCommit<User, Stored>,
}

impl Store {
    fn new(dataset: Arc<dyn Dataset>) -> Self {
        let commits = {
            let dataset = dataset.clone();
            GroupCommit::new(GROUP, dataset.writes_at_once(), move |users: Vec<User>| {
                let dataset = dataset.clone();
                async move { Ok(dataset.store(users).await?) }
            })
        };
        Self { dataset, commits }
    }
}

impl State for Store {
    async fn ready(&self) -> Result<(), Error> {
        self.dataset.ready().await
    }

    fn progress(&self) -> Option<Progress> {
        Some(self.commits.progress())
    }
}

async fn store(state: Store, request: Request) -> Result<Response, Error> {
    let users = offload::run(request.body.len(), move || users(&request)).await?;
    if users.is_empty() {
        return Ok(empty(StatusCode::NO_CONTENT));
    }
    let outcomes = state.commits.submit(users.clone()).await?;
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
