//! `count`, the speed layer: counts distinct users as events arrive. Depends on the views only.

use std::{process::ExitCode, sync::Arc};

use backend_views::Views;
use framework::{
    config::Config,
    error::Error,
    group::GroupCommit,
    offload,
    router::{Request, Response, Router, empty, json as answer},
    serve, user_event,
};
use http::{Method, StatusCode};
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

/// The function's routes over the views. Call it inside a runtime: the group commit works there.
#[must_use]
pub fn routes(views: Arc<dyn Views>) -> Router {
    let (ready, total) = (views.clone(), views.clone());
    let counts = GroupCommit::new(GROUP, views.commits_at_once(), move |ids: Vec<Uuid>| {
        let (views, count) = (views.clone(), ids.len());
        async move {
            views.count(ids).await.map_err(|e| Error::unavailable(&e))?;
            Ok(vec![(); count])
        }
    });
    let progress = counts.progress();
    Router::new(move || {
        let views = ready.clone();
        async move { views.ready().await.map_err(|e| Error::unavailable(&e)) }
    })
    .watching(progress)
    .route(Method::POST, "/", move |request| count(counts.clone(), request))
    .route(Method::GET, "/user/count", move |_| {
        let views = total.clone();
        async move {
            let total = views.total().await.map_err(|e| Error::unavailable(&e))?;
            Ok(answer(StatusCode::OK, &json!({ "userCount": total })))
        }
    })
}

async fn count(counts: GroupCommit<Uuid, ()>, request: Request) -> Result<Response, Error> {
    let ids = offload::run(request.body.len(), move || ids(&request)).await?;
    if !ids.is_empty() {
        counts.submit(ids).await?;
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

fn ids(request: &Request) -> Result<Vec<Uuid>, Error> {
    let users = user_event::users_from_http(&request.headers, &request.body)?;
    Ok(users.into_iter().map(|user| user.id).collect())
}
