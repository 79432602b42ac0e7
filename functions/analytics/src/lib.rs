//! `analytics`: merges both layers: the batch layer's longest name, and the two histories of the number of users.
//! Depends on the views and the master; computes nothing that grows with the data.

mod dashboard;
mod merge;
mod query;

use std::{process::ExitCode, sync::Arc};

use backend_master::BatchViews;
use domain::{History, Point, User};
use framework::{
    config::Config,
    error::Error,
    etag,
    router::{Request, Response, Router, State},
    serve,
};
use http::{HeaderValue, header};
use serde::Serialize;

use crate::query::Query;

/// Runs the function until SIGTERM.
pub fn run() -> ExitCode {
    serve::run("analytics", |config: &Config| {
        let views = backend_views::open(&config.views_url()?, config.speed_retention()?)?;
        let master = backend_master::open(&config.master_url()?)?;
        Ok(routes(views, master))
    })
}

/// The function's routes over both layers.
#[must_use]
pub fn routes(speed: Arc<dyn History>, batch: Arc<dyn BatchViews>) -> Router<Layers> {
    Router::new(Layers { speed, batch })
        .get("/analytics", analytics)
        .get("/", async |_, _| Ok(dashboard::page()))
}

/// What the handlers share: both layers, to read.
#[derive(Clone)]
pub struct Layers {
    speed: Arc<dyn History>,
    batch: Arc<dyn BatchViews>,
}

impl State for Layers {
    async fn ready(&self) -> Result<(), Error> {
        self.speed.ready().await?;
        self.batch.ready().await
    }
}

/// The response of `GET /analytics`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Analytics {
    longest_name_user: Option<User>,
    user_count: Vec<Row>,
}

/// A point of the history in the response.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: uuid::Uuid,
    time: String,
    user_count: u64,
}

impl From<Point> for Row {
    fn from(point: Point) -> Self {
        let time = point.time.format("%Y-%m-%dT%H:%M:%SZ").to_string();
        Self { id: point.id, time, user_count: point.user_count }
    }
}

async fn analytics(layers: Layers, request: Request) -> Result<Response, Error> {
    let query = Query::parse(&request.query)?;
    let longest_name_user = layers.batch.longest().await?;
    // Ask for one more, which tells whether older points exist, and another one that may fall away where the layers
    // share a step.
    let mut window = query.window;
    window.limit += 2;
    let mut points = merge::newest_first(&*layers.speed, &*layers.batch, window).await?;
    let older = points.len() > query.window.limit;
    points.truncate(query.window.limit);
    let link = points.last().filter(|_| older).map(|oldest| query.before(oldest));
    let user_count = points.into_iter().rev().map(Row::from).collect();
    let analytics = Analytics { longest_name_user, user_count };
    let mut response = etag::conditional_json(&request.headers, &analytics);
    if let Some(link) = link.and_then(|query| HeaderValue::try_from(format!("<?{query}>; rel=\"prev\"")).ok())
    {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}
