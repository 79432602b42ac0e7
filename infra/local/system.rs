//! The system: functions, event sources and gateway, wired together.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::bail;
use async_trait::async_trait;
use backend_log::Log;
use bytes::Bytes;
use eventing::{
    event_sources::{self, Resources, RunningSources},
    sink::{Sink, SinkError},
};
use framework::{
    config::{Config, ConfigError},
    telemetry,
};
use serving::{FunctionSpec, Guard, Invoker, Launch, Processes, Route, Serving, status::Change};
use tokio::{
    net::TcpListener,
    sync::{Mutex, broadcast, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    data_folder::{DataFolder, FolderError},
    environment,
    log_file::LogFile,
    manifests,
    page::StatusPage,
    routes,
    stores::Stores,
    terminal::print,
};

/// How long a function may take to exit after SIGTERM. By then all its requests, which come through this process, are
/// answered or cancelled.
const TERMINATION_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the event sources may take to stop: longer than they wait for deliveries in flight.
const SOURCES_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval at which the data folder is checked.
const FOLDER_INTERVAL: Duration = Duration::from_secs(1);

/// Where the system listens, keeps its data and finds its manifests.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SystemArgs {
    /// Where the gateway listens
    #[arg(long, global = true, default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// A further name of this machine, which requests may be for; may be given several times
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) allow_host: Vec<String>,
    /// The folder of everything embedded, and of the functions' output
    #[arg(long, global = true, default_value = "data")]
    pub(crate) data: PathBuf,
    /// Manifests, or folders of them [default: functions/*/service.yaml and eventing/*.yaml]
    #[arg(long, global = true, num_args = 1.., value_name = "PATH")]
    pub(crate) manifests: Vec<PathBuf>,
}

/// The system that manifests and configuration describe, before it runs.
pub(crate) struct System {
    pub(crate) arrows: Resources,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) routes: Vec<Route>,
    guard: Guard,
    pub(crate) stores: Stores,
    pub(crate) config: Arc<Config>,
    folder: Arc<DataFolder>,
    specs: Vec<FunctionSpec>,
}

impl System {
    /// Reads manifests and configuration.
    pub(crate) fn open(args: &SystemArgs) -> anyhow::Result<Self> {
        let folder = Arc::new(DataFolder::open(&args.data)?);
        let config = Config::read(|key| std::env::var(key).ok(), folder.path())?;
        let stores = Stores::read(&config)?;
        let log = backend_log::open(&stores.log_url)?;
        let arrows = manifests::read(&args.manifests)?;
        let topic = backend_log::topic(&stores.log_url);
        if !arrows.kafka_sources.is_empty() && !arrows.read_topic(&topic) {
            let why = format!("users would go to the topic `{topic}`, which no KafkaSource reads");
            return Err(ConfigError::new("LOG_URL", why).into());
        }
        let specs = manifests::specs(&arrows)?;
        let routes = routes::read(&args.manifests)?;
        let guard = Guard::new(args.allow_host.iter().cloned(), manifests::internal(&arrows));
        Ok(Self { arrows, log, routes, guard, stores, config: Arc::new(config), folder, specs })
    }

    /// Starts to manage the functions; their replicas start on demand.
    pub(crate) fn serve(&self) -> anyhow::Result<Serving> {
        let (program, folder) = (this_program(), self.folder.clone());
        let (stores, config) = (self.stores.clone(), self.config.clone());
        let launch = move |spec: &FunctionSpec| {
            // On another folder, the replica would start with empty stores.
            folder.check().map_err(io::Error::other)?;
            let args = vec!["function".to_owned(), spec.name.clone()];
            let mut env = environment::of_function(spec, &stores, &config);
            env.push(("DATA_FOLDER".to_owned(), folder.path().display().to_string()));
            Ok(Launch { program: program.clone(), args, env })
        };
        let processes = Processes::new(launch, self.folder.path().join("logs"), TERMINATION_TIMEOUT);
        Ok(Serving::start(self.specs.clone(), processes)?)
    }

    /// Runs everything until `stop`, then shuts down in the order in which requests flow.
    pub(crate) async fn run(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        self.folder.lock()?;
        let log_file = LogFile::open(self.folder.path().join("logs/runtime.log"))?;
        let telemetry = telemetry::start("runtime", &self.config, move || log_file.clone())?;
        let serving = Arc::new(self.serve()?);
        let (news, letters) = mpsc::unbounded_channel();
        let (fatal, mut failed) = mpsc::channel(1);
        let background = self.background(&serving, letters, fatal);
        let sink: Arc<dyn Sink> = Arc::new(FunctionSink(serving.invoker()));
        let stop_arrows = CancellationToken::new();
        let sources: Arc<RunningSources> =
            Arc::new(event_sources::run(&self.arrows, &self.log, &sink, news, &stop_arrows));
        print(&format!("listening on http://{}", listener.local_addr()?));
        print(&format!(
            "data in {}, status at /, analytics at /service-analytics/",
            self.folder.path().display()
        ));
        let page = Arc::new(StatusPage::new(serving.clone(), sources.clone(), self.folder.clone()));
        let status = move |request| {
            let page = page.clone();
            async move { page.answer(&request).await }
        };
        let mut cause = None;
        let stop = async {
            tokio::select! {
                () = stop => {}
                Some(why) = failed.recv() => cause = Some(why),
            }
        };
        serving.gateway(listener, self.routes, self.guard, status, stop).await;
        print("stopping");
        stop_arrows.cancel();
        // The sources send again after the next start what they did not commit.
        if timeout(SOURCES_TIMEOUT, sources.ended()).await.is_err() {
            tracing::warn!("the event sources did not end in time");
        }
        serving.shutdown().await;
        telemetry.flush();
        drop(background);
        match cause {
            Some(why) => bail!(why),
            None => Ok(()),
        }
    }

    /// Runs the tasks beside the requests: printing changes, and watching the data folder.
    fn background(
        &self,
        serving: &Serving,
        letters: mpsc::UnboundedReceiver<String>,
        fatal: mpsc::Sender<String>,
    ) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let (supervised, news) = (serving.supervised(), Arc::new(Mutex::new((serving.changes(), letters))));
        tasks.spawn(async move { supervised.supervise("terminal", || print_news(news.clone())).await });
        let (supervised, folder) = (serving.supervised(), self.folder.clone());
        tasks.spawn(async move {
            supervised.supervise("data folder", || watch_folder(folder.clone(), fatal.clone())).await;
        });
        tasks
    }
}

/// Reports once when the data folder is no longer the one that was opened, and once when it is back. Ends this runtime
/// if another one has taken the folder: both would send every event.
async fn watch_folder(folder: Arc<DataFolder>, fatal: mpsc::Sender<String>) {
    let mut problem = None;
    loop {
        let now = match folder.check() {
            Ok(()) => None,
            Err(taken @ FolderError::Taken(_)) => {
                // The receiver lives as long as this task does.
                let _ = fatal.send(taken.to_string()).await;
                return;
            }
            Err(gone) => Some(gone.to_string()),
        };
        if now != problem {
            let line = now.as_deref().unwrap_or("the data folder is back");
            tracing::error!(problem = line, "the data folder changed");
            print(line);
            problem = now;
        }
        tokio::time::sleep(FOLDER_INTERVAL).await;
    }
}

/// Delivers events to functions of this process.
pub(crate) struct FunctionSink(pub(crate) Invoker);

#[async_trait]
impl Sink for FunctionSink {
    async fn send(
        &self,
        function: &str,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, SinkError> {
        Ok(self.0.send(function, request).await)
    }
}

/// Prints a line for each change.
async fn print_news(news: Arc<Mutex<(broadcast::Receiver<Change>, mpsc::UnboundedReceiver<String>)>>) {
    let (changes, letters) = &mut *news.lock().await;
    loop {
        let line = tokio::select! {
            change = changes.recv() => match change {
                Ok(Change::Scaled { function, to: 0 }) => format!("{function} scaled to zero"),
                Ok(Change::Scaled { function, to }) => format!("{function} scaled to {to}"),
                Ok(Change::Crashed { function, why }) => format!("{function} ended by itself: {why}"),
                Err(broadcast::error::RecvError::Lagged(missed)) => format!("and {missed} changes more"),
                Err(broadcast::error::RecvError::Closed) => return,
            },
            Some(letter) = letters.recv() => letter,
        };
        print(&format!("{} {line}", chrono::Utc::now().format("%H:%M:%S")));
    }
}

/// The path of this program, valid even after its file was replaced.
fn this_program() -> PathBuf {
    let link = Path::new("/proc/self/exe");
    if link.exists() {
        return link.to_owned();
    }
    std::env::current_exe().unwrap_or_else(|_| "lambda-architecture".into())
}
