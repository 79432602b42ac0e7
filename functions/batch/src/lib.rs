//! `batch`, the batch layer: on every tick, updates the batch views from the master dataset. Depends on the master
//! only, which decides what a tick costs.

use std::{process::ExitCode, sync::Arc};

use backend_master::BatchJob;
use framework::{
    config::Config,
    error::{Error, Rejection},
    offload,
    router::{Request, Response, Router, json},
    serve, user_event,
};
use http::StatusCode;

/// Runs the function until SIGTERM.
pub fn run() -> ExitCode {
    serve::run("batch", |config: &Config| {
        let master = backend_master::open(&config.master_url()?)?;
        Ok(routes(master).guarded(config.event_token()?))
    })
}

/// The function's routes over the master dataset.
#[must_use]
pub fn routes(job: Arc<dyn BatchJob>) -> Router<Arc<dyn BatchJob>> {
    Router::new(job).post("/", tick)
}

async fn tick(job: Arc<dyn BatchJob>, request: Request) -> Result<Response, Error> {
    let query = request.query.clone();
    offload::run(request.body.len(), move || user_event::from_http(&request.headers, &request.body)).await?;
    let full = match query.as_str() {
        "" | "full=false" => false,
        "full=true" => true,
        other => {
            return Err(
                Rejection::bad_data(format!("`{other}` is no parameter; there is `full=true`")).into()
            );
        }
    };
    let tick = job.tick(full).await?;
    tracing::info!(new_users = tick.new_users, users = tick.users, full, "batch views are up to date");
    Ok(json(StatusCode::OK, &tick))
}
