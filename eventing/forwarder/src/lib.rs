//! Plays the arrows of `eventing/*.yaml` in front of OpenFaaS, whose Community Edition has no sources: reads the log,
//! ticks the clock, and posts each event to its function's URL at the gateway, with retries and dead letters.
//! Knows the gateway; not how functions run behind it.

mod gateway;
mod settings;

use std::{io, path::PathBuf, process::ExitCode, sync::Arc};

use backend_log::Log;
use eventing::{
    event_sources::{self, Resources, RunningSources},
    files::{self, FilesError},
    manifest::ManifestError,
    sink::Sink,
};
use framework::{
    config::{ConfigError, EXIT_CONFIG},
    error::Error,
    router::{Router, State, json},
    serve, telemetry,
};
use http::StatusCode;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

pub use crate::{gateway::Gateway, settings::Settings};

/// Where the image has the arrows, and the functions that they lead to.
const IN_IMAGE: [&str; 2] = ["/etc/lambda-architecture/eventing", "/etc/lambda-architecture/functions"];

/// Why the forwarder ended.
#[derive(Debug, thiserror::Error)]
pub enum ForwarderError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A manifest is not there.
    #[error("a manifest is missing")]
    Files(#[from] FilesError),
    /// There is no client to call the gateway with.
    #[error("the gateway's client")]
    Client(#[from] reqwest::Error),
    /// The machine does not let it.
    #[error("forwarder")]
    Io(#[from] io::Error),
}

/// Plays the manifests, or folders of them, that the program is called with, or else its image's, until SIGTERM. Exits
/// 64 with one line on standard error when the configuration is wrong.
pub fn run() -> ExitCode {
    let mut manifests: Vec<_> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if manifests.is_empty() {
        manifests.extend(IN_IMAGE.map(PathBuf::from));
    }
    // One thread is enough: it waits for the log and the gateway, and backends have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(ForwarderError::from).and_then(|runtime| runtime.block_on(start(&manifests)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", Error::unavailable(&error));
            match error {
                ForwarderError::Config(_) => ExitCode::from(EXIT_CONFIG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

async fn start(manifests: &[PathBuf]) -> Result<(), ForwarderError> {
    let settings = Settings::read(|key| std::env::var(key).ok())?;
    let telemetry = telemetry::start("forwarder", &settings.config, io::stdout)?;
    let log = backend_log::open(&settings.log_url)?;
    let listener = TcpListener::bind(("0.0.0.0", settings.config.port)).await?;
    let stop = CancellationToken::new();
    let stopping = stop.clone().drop_guard();
    let terminated = serve::terminated()?;
    tokio::spawn(async move {
        terminated.await;
        drop(stopping);
    });
    let gateway = Arc::new(Gateway::new(settings.gateway)?);
    forward(&read(manifests)?, log, gateway, listener, stop).await;
    telemetry.flush();
    Ok(())
}

/// Reads the arrows of manifests and of folders of them.
pub fn read(manifests: &[PathBuf]) -> Result<Resources, ForwarderError> {
    let texts = files::read(manifests)?;
    Ok(Resources::read(texts.iter().map(|(file, text)| (file.as_str(), text.as_str())))?)
}

/// Plays the arrows until `stop` and answers probes; then lets what is under way end, and commits.
pub async fn forward(
    arrows: &Resources,
    log: Arc<dyn Log>,
    gateway: Arc<Gateway>,
    listener: TcpListener,
    stop: CancellationToken,
) {
    let (news, mut letters) = mpsc::unbounded_channel::<String>();
    // Ends with the event sources, which hold the sender.
    tokio::spawn(async move {
        while let Some(letter) = letters.recv().await {
            tracing::error!(letter, "an event needs somebody's care");
        }
    });
    let sink: Arc<dyn Sink> = gateway.clone();
    let sources = Arc::new(event_sources::run(arrows, &log, &sink, news, &stop));
    let probes = routes(Forwarder { log, gateway, sources: sources.clone() });
    serve::serve(listener, probes, stop.cancelled_owned()).await;
    sources.ended().await;
}

/// The probes, `GET /arrows`: what each arrow did and how far behind it is, and `GET /tasks`: what else runs, and failed.
fn routes(forwarder: Forwarder) -> Router<Forwarder> {
    Router::new(forwarder)
        .get("/arrows", async |forwarder: Forwarder, _| {
            Ok(json(StatusCode::OK, &forwarder.sources.status().await))
        })
        .get("/tasks", async |forwarder: Forwarder, _| Ok(json(StatusCode::OK, &forwarder.sources.tasks())))
}

/// What the forwarder's routes show.
#[derive(Clone)]
struct Forwarder {
    log: Arc<dyn Log>,
    gateway: Arc<Gateway>,
    sources: Arc<RunningSources>,
}

impl State for Forwarder {
    async fn ready(&self) -> Result<(), Error> {
        self.log.ready().await?;
        self.gateway.ready().await
    }
}
