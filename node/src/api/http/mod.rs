//! The HTTP API: the endpoints of OpenAI, Anthropic and Ollama, and a few of our own (DESIGN §4.3), on a thread of its own.
//!
//! | file | owns |
//! |---|---|
//! | `connections`, `write_deadline` | the port, connections from accepting to draining; clients that do not read |
//! | `guard`, `cors` | Host, Origin, key, how often a client asks; pages of other origins |
//! | `key_holder` | who holds which API key, and what is left of its limits |
//! | `content_type` | bodies that are not JSON |
//! | `fields`, `generation` | the JSON of requests, read field by field |
//! | `chat`, `completions` | the two endpoints that generate |
//! | `entrance`, `foreign_answer` | requests that another node answers as a whole, and what becomes of its answer |
//! | `for_peers` | requests of peers, answered like those of clients |
//! | `federation` | votes on answers |
//! | `turn` | an answer as text and calls of tools |
//! | `answer` | responses of those two endpoints, whole or as events |
//! | `dialect` | the way of a turn to a client in the dialects that follow |
//! | `responses`, `messages`, `ollama` | requests of OpenAI's Responses API, of Anthropic's API, of Ollama's |
//! | `responses_stream`, `messages_stream`, `ollama_stream` | turns as each of them writes them |
//! | `conversation` | turns from items and blocks |
//! | `ollama_models` | models as Ollama lists them |
//! | `embeddings` | embeddings of texts, as OpenAI and Ollama have them |
//! | `models`, `metrics` | models, health and readiness; metrics |
//! | `jobs` | jobs, as a list and as events |
//! | `receipts` | stored receipts and their audits |
//! | `pool` | peers, topology, the pool in one document, where a model would be placed |
//! | `membership` | members, invitations, nodes that wait to be accepted |
//! | `downloads` | downloads of models: jobs that go on without the client that asked |
//! | `models_on_disk` | models on this machine; following and stopping their downloads |
//! | `products` | products of two matrices, with their progress and result in one answer |
//! | `console` | the files of the console, which a browser shows at `/` |
//! | `openapi` | the description of all routes |
//! | `traced` | spans of requests that make this node or others work |
//! | `error`, `limits` | failures as clients read them; limits |
//!
//! Each file defines its routes in `routes`, with their aliases; a new file adds one line here.
//!
//! The HTTP API knows no model's insides and computes nothing.

mod answer;
mod chat;
mod completions;
mod connections;
mod console;
mod content_type;
mod conversation;
mod cors;
mod dialect;
mod downloads;
mod embeddings;
mod entrance;
mod error;
mod federation;
mod fields;
mod for_peers;
mod foreign_answer;
mod generation;
mod guard;
mod jobs;
mod key_holder;
mod limits;
mod membership;
mod messages;
mod messages_stream;
mod metrics;
mod models;
mod models_on_disk;
mod ollama;
mod ollama_models;
mod ollama_stream;
mod openapi;
mod pool;
mod products;
mod receipts;
mod responses;
mod responses_stream;
mod traced;
mod turn;
mod write_deadline;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::service::TowerToHyperService;
use pangea_client::{ErrorKind, Result};
use pangea_control::net::rate::Rate;

use crate::api::service::{Listeners, Service};
use crate::api_keys::ApiKeys;
use crate::fabric::Fabric;
use crate::federation::Federation;
use crate::jobs::Jobs;
use crate::observe::Observer;
use crate::pool::{Members, Pool};
use crate::serve::{self, Engine, Served};
use crate::supervise::Supervisor;
use crate::trust::{Auditor, ReceiptStore};
use crate::tunnel::Tunnel;
use crate::tunnel::answering::Answering;
use connections::Connections;
use cors::Cors;
use downloads::Downloads;
use entrance::EntranceMetrics;
use error::ApiError;
use guard::{Guard, Policy};
use key_holder::KeyHolder;
use metrics::Metrics;

pub use connections::{bind, bind_ollama};

/// The parts of the node that the API uses.
pub struct Node {
    /// Source of the node's status.
    pub fabric: Fabric,
    /// Source of the topology; `None` without a network.
    pub pool: Option<Pool>,
    /// Who belongs to the pool; `None` without a network.
    pub members: Option<Members>,
    /// Tunnels to and from other nodes; `None` without a network.
    pub tunnel: Option<Tunnel>,
    /// Models served.
    pub served: Served,
    /// Folder of the models on this machine.
    pub models: PathBuf,
    /// Stored receipts of answers.
    pub receipts: ReceiptStore,
    /// Audits receipts; `None` without a network.
    pub auditor: Option<Auditor>,
    /// Jobs of this node.
    pub jobs: Jobs,
    /// How answers are voted on; `None` if they are not.
    pub federation: Option<Federation>,
    /// API key of the owner, if any.
    pub key: Option<String>,
    /// Keys that the owner gave to others.
    pub keys: ApiKeys,
    /// Origins whose pages may use the API; `*` is every origin.
    pub cors: Vec<String>,
    /// How often one client may ask; `None` without a limit.
    pub client_rate: Option<Rate>,
    /// Registry of the node's metrics.
    pub observer: Observer,
    /// Source of the failed parts in `/healthz`.
    pub supervisor: Supervisor,
}

/// The rate of a client that may make so many requests per second in the long run: a page that loads asks for several
/// things at once.
pub fn client_rate(per_second: u32) -> Rate {
    let per_second = f64::from(per_second);
    Rate { per_second, burst: 4.0 * per_second }
}

/// Where the API listens.
pub struct Ports {
    /// The port of the API.
    pub api: TcpListener,
    /// The port where Ollama's clients look for it, if the API is offered there too.
    pub ollama: Option<TcpListener>,
}

/// The running API. Dropping it ends it without a grace period.
pub struct Running {
    /// One service for each port.
    services: Vec<Service>,
    /// Answers to peers.
    answering: Option<Answering>,
}

impl Running {
    /// Accepts no more connections and requests, lets running answers end within `grace`, then ends them.
    pub async fn shutdown(self, grace: Duration) {
        let services = self.services.into_iter().map(|service| service.shutdown(grace));
        let answering = async {
            if let Some(answering) = self.answering {
                answering.shutdown(grace).await;
            }
        };
        tokio::join!(futures::future::join_all(services), answering);
    }
}

/// Serves the API on `ports`, if there are any, one service for each, and to peers.
///
/// # Errors
/// `Internal` if a thread cannot be started.
pub fn serve(ports: Option<Ports>, node: Node) -> Result<Running> {
    let address = ports.as_ref().map(|ports| ports.api.local_addr()).transpose().map_err(|error| {
        pangea_client::Error::new(ErrorKind::Internal, format!("the HTTP API has no address: {error}"))
    })?;
    let cors = Cors::new(&node.cors);
    let guard = Guard::new(&Policy {
        host: &crate::host::name(),
        is_offered: address.is_some_and(|address| !address.ip().is_loopback()),
        key: node.key.as_deref(),
        keys: node.keys,
        cors: cors.clone(),
        rate: node.client_rate,
    });
    serve::observe(&node.served, &node.observer);
    let (metrics, tunnelled) = (Metrics::new(&node.observer), EntranceMetrics::new(&node.observer));
    let started_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let app = App(Arc::new(Shared {
        fabric: node.fabric,
        pool: node.pool,
        members: node.members,
        tunnel: node.tunnel,
        tunnelled,
        served: node.served,
        models: node.models,
        downloads: Downloads::default(),
        receipts: node.receipts,
        auditor: node.auditor,
        jobs: node.jobs,
        federation: node.federation,
        address,
        metrics,
        started_s,
        observer: node.observer,
        supervisor: node.supervisor.clone(),
    }));
    let answering = app.tunnel.as_ref().map(|tunnel| {
        let routes = TowerToHyperService::new(asking_routes().with_state(app.clone()));
        Answering::start(tunnel, &node.supervisor, move |asked| for_peers::answer(routes.clone(), asked))
    });
    let answering = answering.transpose()?.flatten();
    let mut services = Vec::new();
    let Some(ports) = ports else { return Ok(Running { services, answering }) };
    let routes = routes(app, guard, cors);
    if let Some(tcp) = ports.ollama {
        // Clients ask this before anything else.
        let routes = Router::new().route("/", get(|| async { "Ollama is running" })).fallback_service(routes.clone());
        let listeners = Listeners { tcp, unix: None };
        let connections = move || Connections::new(routes);
        services.push(Service::spawn(connections::OLLAMA, listeners, &node.supervisor, connections)?);
    }
    let listeners = Listeners { tcp: ports.api, unix: None };
    let connections = move || Connections::new(routes);
    services.push(Service::spawn(connections::DESCRIPTION, listeners, &node.supervisor, connections)?);
    Ok(Running { services, answering })
}

/// State that every handler can reach.
#[derive(Clone)]
struct App(Arc<Shared>);

struct Shared {
    fabric: Fabric,
    pool: Option<Pool>,
    members: Option<Members>,
    tunnel: Option<Tunnel>,
    tunnelled: EntranceMetrics,
    served: Served,
    models: PathBuf,
    downloads: Downloads,
    receipts: ReceiptStore,
    auditor: Option<Auditor>,
    jobs: Jobs,
    federation: Option<Federation>,
    /// Where the API listens, if it does.
    address: Option<SocketAddr>,
    metrics: Metrics,
    started_s: u64,
    observer: Observer,
    supervisor: Supervisor,
}

impl std::ops::Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    /// The name of the model that a request means. The only model that this node knows need not be named.
    fn model_name(&self, model: Option<&str>, holder: &KeyHolder) -> std::result::Result<String, ApiError> {
        let mut names = self.served.names();
        names.retain(|name| holder.may_use(name));
        let model = match (model, &names[..]) {
            (Some(model), _) => model,
            (None, [only]) => only,
            (None, _) => return Err(ApiError::field("model", "model is missing")),
        };
        holder.check(model)?;
        Ok(model.to_owned())
    }

    /// The engine of a model, once it is ready. A peer asks for a model by its digest, and for those only that this node serves.
    async fn engine(&self, model: Option<&str>, holder: &KeyHolder) -> std::result::Result<Engine, ApiError> {
        let model = match holder.peer() {
            None => self.model_name(model, holder)?,
            Some(asking) => self.served.serves(&asking.model).ok_or_else(|| {
                ApiError::new(ErrorKind::NotFound, format!("this node does not serve model {}", asking.model))
            })?,
        };
        let model = model.as_str();
        match self.served.engine(model, limits::READY_TIME).await {
            Ok(engine) => Ok(engine),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(self.no_such_model(model)),
            Err(error) => Err(ApiError::from(error).retry_after(limits::READY_RETRY)),
        }
    }

    fn no_such_model(&self, name: &str) -> ApiError {
        let served = self.served.names();
        let why = self.served.not_found(name);
        if why.kind() == ErrorKind::Unavailable {
            return ApiError::from(why).retry_after(limits::READY_RETRY);
        }
        let message = match served[..] {
            [] => format!("{}; it serves none: start it with --model", why.message()),
            _ => format!("{}; it serves: {}", why.message(), served.join(", ")),
        };
        ApiError::new(ErrorKind::NotFound, message).about("model").code("model_not_found")
    }
}

/// The routes that ask a model: those that [`crate::tunnel`] carries.
fn asking_routes() -> Router<App> {
    Router::new()
        .merge(chat::routes())
        .merge(completions::routes())
        .merge(embeddings::routes())
        .merge(messages::routes())
        .merge(ollama::routes())
        .merge(responses::routes())
}

/// The routes that have something computed.
fn working_routes(app: &App) -> Router<App> {
    asking_routes()
        .route_layer(from_fn_with_state(app.clone(), entrance::enter))
        .merge(federation::routes())
        .merge(products::routes())
}

/// Every route of the API; each file defines its own.
fn routes(app: App, guard: Guard, cors: Cors) -> Router {
    Router::new()
        .merge(working_routes(&app).route_layer(from_fn(traced::trace)))
        .merge(console::routes())
        .merge(jobs::routes())
        .merge(membership::routes())
        .merge(metrics::routes())
        .merge(models::routes())
        .merge(models_on_disk::routes())
        .merge(ollama_models::routes())
        .merge(openapi::routes())
        .merge(pool::routes())
        .merge(receipts::routes())
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn(content_type::check))
        .layer(from_fn_with_state(Arc::new(guard), Guard::check))
        .layer(from_fn_with_state(cors, Cors::answer))
        .layer(from_fn(error::in_dialect))
        .layer(from_fn_with_state(app.clone(), metrics::count))
        .layer(map_response(no_sniffing))
        .with_state(app)
}

async fn unknown(uri: Uri) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format!("no such path: {}", uri.path())).code("unknown_url")
}

/// Answers what no route does; the router adds the header `Allow`.
async fn wrong_method(method: Method, uri: Uri) -> Response {
    if method == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    let message = format!("method {method} is not allowed at {}", uri.path());
    ApiError::new(ErrorKind::InvalidInput, message).status(StatusCode::METHOD_NOT_ALLOWED).into_response()
}

/// Forbids browsers to guess a content type.
async fn no_sniffing(response: Response) -> Response {
    ([("x-content-type-options", "nosniff")], response).into_response()
}
