//! The coordinator as a service: opens its data, serves, and ends in order.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anybit_proto::FILE_DESCRIPTOR_SET;
use anybit_proto::v1::agent_service_server::AgentServiceServer;
use anybit_proto::v1::cluster_service_server::ClusterServiceServer;
use anybit_proto::v1::job_service_server::JobServiceServer;
use anybit_shared::clock::{Clock, SystemClock};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpIncoming};
use tonic_health::server::HealthReporter;

use crate::engine;
use crate::grpc::Api;
use crate::logs::LogFiles;
use crate::settings::Settings;
use crate::store::{SqliteStore, Store, StoreError};

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why the coordinator does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data folder cannot be used.
    #[error("cannot use data_dir {}", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another coordinator uses it.
    #[error("data_dir {} is in use by another coordinator: stop that one, or give another --data-dir", .0.display())]
    InUse(PathBuf),
    /// The database failed.
    #[error("cannot open the database in data_dir: {0}")]
    Store(#[from] StoreError),
    /// The address cannot be had.
    #[error("cannot listen on {address} (--listen 127.0.0.1:0 takes a free port)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The address file cannot be written.
    #[error("cannot write address_file {}", path.display())]
    AddressFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server failed.
    #[error("the server failed: {0}")]
    Server(String),
}

/// A coordinator that serves.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    shutdown: CancellationToken,
    finished: JoinHandle<Result<(), ServeError>>,
}

impl Service {
    /// Opens the data, loads the jobs, and serves until `shutdown`.
    pub async fn start(settings: Settings, shutdown: CancellationToken) -> Result<Self, ServeError> {
        let lock = lock_data_dir(&settings.data_dir)?;
        if let Some(path) = &settings.address_file {
            // Who waits for the address must not read that of an earlier life.
            remove_if_there(path).map_err(|source| ServeError::AddressFile { path: path.clone(), source })?;
        }
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&settings.data_dir.join("anybit.db")).await?);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let listen_error = |source| ServeError::Listen { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;

        let engine_stop = CancellationToken::new();
        let (engine, engine_task) =
            engine::start(settings.engine_options(), Arc::clone(&store), clock, engine_stop.clone()).await?;
        let api = Api {
            engine,
            logs: LogFiles::new(settings.data_dir.join("logs"), settings.max_log_bytes),
            shutdown: shutdown.clone(),
            sessions: TaskTracker::new(),
        };
        let sessions = api.sessions.clone();
        let (router, health) = router(&api, &settings).await?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server =
            tokio::spawn(router.serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned()));
        if let Some(path) = &settings.address_file {
            let error = |source| ServeError::AddressFile { path: path.clone(), source };
            write_address(path, address).map_err(error)?;
        }
        tracing::info!(address = %url(address), data_dir = %settings.data_dir.display(), "serving");

        let stop = shutdown.clone();
        let finished = tokio::spawn(async move {
            let mut server = server;
            // The server ends by itself only when it fails.
            let early = tokio::select! {
                () = stop.cancelled() => None,
                ended = &mut server => Some(ended),
            };
            stop.cancel();
            health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
            let ended = match early {
                Some(ended) => Some(ended),
                None => tokio::time::timeout(settings.shutdown_grace, &mut server).await.ok(),
            };
            if ended.is_none() {
                tracing::warn!("calls were still open after shutdown_grace; cutting them off");
                server.abort();
            }
            sessions.close();
            let _ = tokio::time::timeout(settings.shutdown_grace, sessions.wait()).await;
            engine_stop.cancel();
            let engine_ended = engine_task.await;
            store.close().await;
            drop(lock);
            tracing::info!("stopped; jobs go on without the coordinator");
            engine_ended.map_err(|error| ServeError::Server(error.to_string()))?;
            match ended {
                Some(Ok(Err(error))) => Err(ServeError::Server(error.to_string())),
                Some(Err(error)) => Err(ServeError::Server(error.to_string())),
                Some(Ok(Ok(()))) | None => Ok(()),
            }
        });
        Ok(Self { address, shutdown, finished })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as clients take it.
    pub fn url(&self) -> String {
        url(self.address)
    }

    /// Waits for the end.
    pub async fn finished(self) -> Result<(), ServeError> {
        self.finished.await.map_err(|error| ServeError::Server(error.to_string()))?
    }

    /// Asks for the end, and waits for it.
    pub async fn stop(self) -> Result<(), ServeError> {
        self.shutdown.cancel();
        self.finished().await
    }
}

async fn router(api: &Api, settings: &Settings) -> Result<(Router, HealthReporter), ServeError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<JobServiceServer<Api>>().await;
    reporter.set_serving::<ClusterServiceServer<Api>>().await;
    reporter.set_serving::<AgentServiceServer<Api>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| ServeError::Server(error.to_string()))?;
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(settings.max_concurrent_streams)
        .add_service(health)
        .add_service(reflection)
        .add_service(api.job_service())
        .add_service(api.cluster_service())
        .add_service(api.agent_service());
    Ok((router, reporter))
}

/// One coordinator a folder; the lock goes with the process, however it ends.
fn lock_data_dir(path: &Path) -> Result<File, ServeError> {
    let error = |source| ServeError::DataDir { path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(error)?;
    let file =
        File::options().create(true).truncate(false).write(true).open(path.join("lock")).map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ServeError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(error(source)),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whole or not at all, so that who waits for the file never reads half of it.
fn write_address(path: &Path, address: SocketAddr) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let mut file = File::create(&part)?;
    writeln!(file, "{}", url(address))?;
    file.sync_all()?;
    std::fs::rename(&part, path)
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}
