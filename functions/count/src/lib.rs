//! `count`, the speed layer: counts distinct users as events arrive. Depends on the views only.

use std::{process::ExitCode, sync::Arc};

use backend_views::Counter;
use framework::{
    config::Config,
    error::Error,
    group::GroupCommit,
    offload,
    progress::Progress,
    router::{Request, Response, Router, State, empty, json as answer},
    serve, user_event,
};
use http::StatusCode;
use serde_json::json;
use uuid::Uuid;

/// Maximum number of ids per commit.
const GROUP: usize = 1_000;

/// Runs the function until SIGTERM.
pub fn run() -> ExitCode {
    serve::run("count", |config: &Config| {
        let views = backend_views::open(&config.views_url()?, config.speed_retention()?)?;
        Ok(routes(views).guarded(config.event_token()?))
    })
}

/// The function's routes over a counter. Requires a tokio runtime for the group commit.
#[must_use]
pub fn routes(counter: Arc<dyn Counter>) -> Router<Count> {
    Router::new(Count::new(counter)).post("/", count).get("/user/count", total)
}

/// What the handlers share.
#[derive(Clone)]
pub struct Count {
    counter: Arc<dyn Counter>,
    commits: GroupCommit<Uuid, ()>,
}

impl Count {
    fn new(counter: Arc<dyn Counter>) -> Self {
        let commits = {
            let counter = counter.clone();
            GroupCommit::new(GROUP, counter.writes_at_once(), move |ids: Vec<Uuid>| {
                let (counter, count) = (counter.clone(), ids.len());
                async move {
                    counter.count(ids).await?;
                    Ok(vec![(); count])
                }
            })
        };
        Self { counter, commits }
    }
}

impl State for Count {
    async fn ready(&self) -> Result<(), Error> {
        self.counter.ready().await
    }

    fn progress(&self) -> Option<Progress> {
        Some(self.commits.progress())
    }
}

async fn count(state: Count, request: Request) -> Result<Response, Error> {
    let ids = offload::run(request.body.len(), move || ids(&request)).await?;
    if !ids.is_empty() {
        state.commits.submit(ids).await?;
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn total(state: Count, _: Request) -> Result<Response, Error> {
    let total = state.counter.total().await?;
    Ok(answer(StatusCode::OK, &json!({ "userCount": total })))
}

fn ids(request: &Request) -> Result<Vec<Uuid>, Error> {
    let users = user_event::users_from_http(&request.headers, &request.body)?;
    Ok(users.into_iter().map(|user| user.id).collect())
}
