//! The server: its options, its start and its end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::access::Gate;
use crate::api::{self, App};
use crate::error::{Error, Result};
use crate::gc::Collected;
use crate::mirror::{Mirror, Source};
use crate::store::Store;
use crate::tls::{self, Secured};
use crate::transport::Transport;

/// How long a server that is asked to end waits for requests that have begun.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// How a registry serves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens; port 0 is any free one.
    pub listen: SocketAddr,
    /// Its store.
    pub root: PathBuf,
    /// Nothing is taken and nothing removed.
    pub read_only: bool,
    /// Users with their passwords (`htpasswd -B`); everybody may do everything without.
    pub htpasswd: Option<PathBuf>,
    /// Who may do what: lines of `USER REPOSITORY ACTIONS`. Without, every user may do everything.
    pub access: Option<PathBuf>,
    /// Logins are exchanged for tokens that are good for some minutes; passwords are taken all the same.
    pub tokens: bool,
    /// A mirror: images come from there when they are asked for, and are kept.
    pub source: Option<Arc<dyn Source>>,
    /// By which ways a mirror's blobs may come before its source is asked for them, in order.
    pub transports: Vec<Arc<dyn Transport>>,
    /// How long a mirror does not ask again what is behind a tag.
    pub revalidate: Duration,
    /// A mirror forgets what nobody asked for in so long.
    pub unused: Option<Duration>,
    /// Certificate chain and key, PEM.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Bytes that all blobs and uploads may have together.
    pub quota: Option<u64>,
    /// How long what no manifest refers to is kept.
    pub grace: Duration,
    /// How often it is looked for.
    pub collect_every: Duration,
}

impl Options {
    /// Everything allowed, nothing secured.
    #[must_use]
    pub fn new(listen: SocketAddr, root: impl AsRef<Path>) -> Self {
        Self {
            listen,
            root: root.as_ref().to_owned(),
            read_only: false,
            htpasswd: None,
            access: None,
            tokens: false,
            source: None,
            transports: Vec::new(),
            revalidate: Duration::ZERO,
            unused: None,
            tls: None,
            quota: None,
            grace: Duration::from_secs(3600),
            collect_every: Duration::from_secs(600),
        }
    }
}

/// A registry that serves beside this thread; dropped, it ends.
pub struct Server {
    runtime: Option<Runtime>,
    app: Arc<App>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
    grace: Duration,
}

impl Server {
    /// Opens the store and begins to serve.
    ///
    /// # Errors
    /// When the store is another server's, the address is taken, or a file cannot be used.
    pub fn start(options: &Options) -> Result<Self> {
        let gate = Gate::new(options.htpasswd.as_deref(), options.access.as_deref(), options.tokens)?;
        let tls = options.tls.as_ref().map(|(certificate, key)| tls::config(certificate, key)).transpose()?;
        let store = Store::open(&options.root, options.quota)?;
        let mirror = options.source.clone().map(|source| {
            let transports = options.transports.clone();
            Arc::new(Mirror::new(source, transports, options.revalidate))
        });
        let app = Arc::new(App { store, read_only: options.read_only, gate, tls: tls.is_some(), mirror });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name("ilot-registry")
            .build()
            .map_err(|source| Error::Serve { source })?;
        let listen = |source| Error::Listen { address: options.listen, source };
        let listener = runtime.block_on(TcpListener::bind(options.listen)).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = async move {
            let _ = stopped.await;
        };
        let router = Router::new().fallback(api::handle).with_state(app.clone());
        let guard = runtime.enter();
        let serving = match tls {
            None => runtime.spawn(async move { axum::serve(listener, router).with_graceful_shutdown(ended).await }),
            Some(config) => {
                let secured = Secured::new(listener, config).map_err(listen)?;
                runtime.spawn(async move { axum::serve(secured, router).with_graceful_shutdown(ended).await })
            }
        };
        drop(guard);
        if !options.read_only {
            runtime.spawn(collect_now_and_then(app.clone(), options.collect_every, options.grace, options.unused));
        }
        Ok(Self {
            runtime: Some(runtime),
            app,
            address,
            stop: Some(stop),
            serving: Some(serving),
            grace: options.grace,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Removes what no manifest refers to, now.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn collect(&self) -> Result<Collected> {
        self.app.store.collect(self.grace)
    }

    /// Serves until SIGINT or SIGTERM, and ends when the requests that have begun are done.
    ///
    /// # Errors
    /// When it cannot go on.
    pub fn wait(mut self) -> Result<()> {
        let serve = |source| Error::Serve { source };
        let (Some(runtime), Some(mut serving)) = (self.runtime.take(), self.serving.take()) else { return Ok(()) };
        let stop = self.stop.take();
        let result = runtime.block_on(async move {
            use tokio::signal::unix::{SignalKind, signal};
            let mut interrupt = signal(SignalKind::interrupt()).map_err(serve)?;
            let mut terminate = signal(SignalKind::terminate()).map_err(serve)?;
            tokio::select! {
                ended = &mut serving => return ended.map_or(Ok(()), |result| result.map_err(serve)),
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            drop(stop);
            let _ = tokio::time::timeout(LAST_REQUESTS, serving).await;
            Ok(())
        });
        runtime.shutdown_background();
        result
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// Serves until SIGINT or SIGTERM; `ready` is told the address once clients may come.
///
/// # Errors
/// As [`Server::start`] and [`Server::wait`].
pub fn serve(options: &Options, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let server = Server::start(options)?;
    ready(server.address());
    server.wait()
}

async fn collect_now_and_then(app: Arc<App>, every: Duration, grace: Duration, unused: Option<Duration>) {
    loop {
        tokio::time::sleep(every).await;
        let app = app.clone();
        let collected = tokio::task::spawn_blocking(move || {
            if let Some(unused) = unused {
                app.forget_unused(unused);
            }
            app.store.collect(grace)
        });
        let collected = collected.await;
        match collected {
            Ok(Ok(done)) if done != Collected::default() => tracing::info!(?done, "collected"),
            Ok(Err(error)) => tracing::error!(%error, "cannot collect"),
            _ => {}
        }
    }
}
