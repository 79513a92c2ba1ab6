//! A gateway over an engine in memory, served on a real socket, and clients of it.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    AccessManager as _, CallContext, Error, ErrorKind, Gateway, GatewayBuilder, GatewayConfig, GatewayId,
    InvokeResponse, NewApiKey, Principal, ScopeAuthorizer, TenantId,
};
use function_gateway_events::EventBroker;
use function_gateway_rest::serve::{ServeOptions, serve};
use function_gateway_rest::{
    Anonymous, ApiKeyAuthenticator, Authenticated, Authenticator, MintedKey, RestApi, RestApiBuilder, RestOptions,
};
use function_gateway_testkit::{Engine, Gate, Handler, ScriptedDriver};
use function_gateway_validation::Validation;
use http::HeaderMap;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// No test waits longer for anything.
pub(crate) const LONG: Duration = Duration::from_secs(30);
/// Runtimes of a thread each, for all tests.
pub(crate) static THREADS: LazyLock<[Handle; 2]> = LazyLock::new(|| [runtime("serve-0"), runtime("serve-1")]);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) gateway: Gateway,
    pub(crate) engine: Engine,
    pub(crate) client: Client,
    /// Of the tenant `acme`, with the scope `admin`.
    pub(crate) admin: String,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    served: Mutex<Option<JoinHandle<function_gateway_core::Result<()>>>>,
}

pub(crate) struct Setup {
    pub(crate) gateway: Box<dyn FnOnce(GatewayBuilder) -> GatewayBuilder>,
    pub(crate) api: Box<dyn FnOnce(RestApiBuilder) -> RestApiBuilder>,
    /// What a host has around the API.
    pub(crate) host: Box<dyn FnOnce(axum::Router) -> axum::Router>,
    /// Unless set, with [`THREADS`].
    pub(crate) serve: ServeOptions,
    pub(crate) below: &'static str,
    /// What takes events, with the gateway and the store that it has unless set otherwise.
    pub(crate) events: Box<dyn FnOnce(Gateway, Arc<MemoryStore>) -> Option<EventBroker>>,
    /// Whether the gateway keeps API keys. Without, there is no `admin`.
    pub(crate) keys: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            gateway: Box::new(|builder| builder),
            api: Box::new(|builder| builder),
            host: Box::new(|router| router),
            serve: ServeOptions::default().with_runtimes(THREADS.clone()),
            below: "",
            events: Box::new(|gateway, store| Some(EventBroker::new(gateway, store))),
            keys: true,
        }
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with_options(options: RestOptions) -> Self {
        Self::with(Setup { api: Box::new(|builder| builder.options(options)), ..Setup::default() }).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let driver = ScriptedDriver::new();
        let engine = driver.engine().clone();
        let store = Arc::new(MemoryStore::new(GatewayId::generate()));
        let builder = Gateway::builder()
            .store(Arc::clone(&store))
            .driver("scripted".parse().unwrap(), Arc::new(driver))
            .middleware_for_all(Arc::new(Validation::default()))
            .authorizer(Arc::new(ScopeAuthorizer));
        let gateway = (setup.gateway)(builder).build().await.unwrap();
        let api = RestApi::builder(gateway.clone()).authenticator(ApiKeyAuthenticator::new(gateway.clone()));
        let api = match (setup.events)(gateway.clone(), store) {
            Some(broker) => api.events(broker),
            None => api,
        };
        let router = (setup.api)(api).build().unwrap().router();
        let router = match setup.below {
            "" => router,
            below => axum::Router::new().nest(below, router),
        };
        let router = (setup.host)(router);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(serve(listener, router, setup.serve, async {
            let _ = stopped.await;
        }));
        let client = Client::builder().timeout(LONG).build().unwrap();
        let admin = match setup.keys {
            true => key(&gateway, "acme", "ada", &["admin"]).await,
            false => String::new(),
        };
        let (stop, served) = (Mutex::new(Some(stop)), Mutex::new(Some(served)));
        Self { address, gateway, engine, client, admin, stop, served }
    }

    /// Says that the server is to stop.
    pub(crate) fn stop(&self) {
        self.stop.lock().unwrap().take().unwrap().send(()).unwrap();
    }

    /// Waits until it has stopped.
    pub(crate) async fn stopped(&self) {
        let served = self.served.lock().unwrap().take().unwrap();
        tokio::time::timeout(LONG, served).await.unwrap().unwrap().unwrap();
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn as_who(&self, key: &str, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path)).bearer_auth(key)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.as_who(&self.admin, method, path)
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.request(Method::POST, path).json(body)
    }

    /// Creates a function that echoes.
    pub(crate) async fn create(&self, name: &str) -> Value {
        self.create_with(name, json!({})).await
    }

    /// Creates a function whose specification has some more fields.
    pub(crate) async fn create_with(&self, name: &str, more: Value) -> Value {
        let mut spec = spec();
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let response = self.post("/v1/functions", &json!({"name": name, "spec": spec})).send().await.unwrap();
        json_of(response, StatusCode::CREATED).await
    }

    pub(crate) async fn invoke(&self, name: &str, payload: &'static str) -> Response {
        self.request(Method::POST, &format!("/v1/functions/{name}/invocations")).body(payload).send().await.unwrap()
    }

    /// A connection without a client.
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// What is answered to a body of which a part does not come; where the client closes its side, it never will.
    pub(crate) async fn send_half(&self, method: &str, path: &str, content_type: &str, closes: bool) -> String {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: {content_type}\r\n\
             content-length: 9\r\n\r\n{{",
            self.admin
        );
        self.answer_to(request.as_bytes(), closes).await
    }

    /// What is answered to bytes, until the server closes the connection.
    pub(crate) async fn raw(&self, request: &[u8]) -> String {
        self.answer_to(request, false).await
    }

    async fn answer_to(&self, request: &[u8], closes: bool) -> String {
        let mut stream = self.connect().await;
        // The server may refuse before it has read everything.
        let _ = stream.write_all(request).await;
        if closes {
            let _ = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// Of a gateway with other settings.
pub(crate) fn with_config(change: impl FnOnce(&mut GatewayConfig) + 'static) -> Setup {
    let config = |builder: GatewayBuilder| {
        let mut config = GatewayConfig::default();
        change(&mut config);
        builder.config(config)
    };
    Setup { gateway: Box::new(config), ..Setup::default() }
}

pub(crate) fn spec() -> Value {
    json!({"driver": "scripted", "run": {"custom": {"kind": "echo"}}})
}

/// Every operation of the description: its method, its path, and whether it is open to all.
pub(crate) fn described() -> Vec<(Method, String, bool)> {
    let document: Value = serde_json::from_str(function_gateway_rest::openapi_json()).unwrap();
    let operations = document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, operation)| {
            let is_open =
                operation.get("security").is_some_and(|security| *security == json!([{}]) || *security == json!([]));
            (method.to_uppercase().parse().unwrap(), path.clone(), is_open)
        })
    });
    operations.collect()
}

/// A key that an admin of the tenant has made.
pub(crate) async fn key(gateway: &Gateway, tenant: &str, principal: &str, scopes: &[&str]) -> String {
    let tenant: TenantId = tenant.parse().unwrap();
    let admin = Principal::new(tenant, "root".parse().unwrap()).with_scope("admin").with_scope("metrics");
    let minted = MintedKey::mint().unwrap();
    let mut new = NewApiKey::new(minted.id, minted.hash);
    new.principal = Some(principal.parse().unwrap());
    new.scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    gateway.create_api_key(&CallContext::new(admin), new).await.unwrap();
    minted.text.expose_str().unwrap().to_owned()
}

pub(crate) async fn json_of(response: Response, status: StatusCode) -> Value {
    let (got, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(got, status, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// A problem document, which is checked for what each of them has.
pub(crate) async fn problem(response: Response, status: u16, code: &str) -> Value {
    assert_eq!(header(&response, "content-type"), "application/problem+json");
    assert_eq!(header(&response, "x-function-answered-by"), "gateway");
    let id = header(&response, "x-request-id").to_owned();
    let problem = json_of(response, StatusCode::from_u16(status).unwrap()).await;
    assert_eq!(problem["code"], code, "{problem}");
    assert_eq!(problem["status"], status, "{problem}");
    assert_eq!(problem["type"], format!("urn:function-gateway:error:{code}"), "{problem}");
    assert_eq!(problem["request_id"], id, "{problem}");
    for field in ["title", "detail", "class", "retry", "delivery"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {problem}");
    }
    problem
}

/// A principal that may do everything, whoever asks.
pub(crate) fn anonymous() -> Anonymous {
    let admin = Principal::new("acme".parse().unwrap(), "ada".parse().unwrap());
    Anonymous::new(admin.with_scope("admin"))
}

/// What a store says that can keep and read nothing now.
pub(crate) fn broken<T>() -> function_gateway_core::Result<T> {
    Err(Error::new(ErrorKind::Store, "the disk is full").with_detail("/dev/sda1"))
}

/// Who sends a request that a [`broken`] store fails is told that, and when to come again, and no more of the store.
pub(crate) async fn store_fails(request: RequestBuilder) {
    let refused = request.send().await.unwrap();
    assert_eq!(header(&refused, "retry-after"), "1", "{refused:?}");
    let refused = problem(refused, 503, "store").await;
    assert!(!refused.to_string().contains("sda1"), "{refused}");
}

/// The executions that have ended so.
pub(crate) async fn executions(server: &Server, state: &str) -> Vec<Value> {
    let list = server.get(&format!("/v1/executions?state={state}")).send().await.unwrap();
    json_of(list, StatusCode::OK).await["items"].as_array().unwrap().clone()
}

pub(crate) fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).unwrap_or_else(|| panic!("{name} of {response:?}")).to_str().unwrap()
}

/// A runtime of one thread, which has a name, until the process ends.
pub(crate) fn runtime(name: &str) -> Handle {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    let driven = move || runtime.block_on(std::future::pending::<()>());
    std::thread::Builder::new().name(name.to_owned()).spawn(driven).unwrap();
    handle
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < LONG, "{what}");
        tokio::task::yield_now().await;
    }
}

/// A function that logs a text and answers with nothing.
pub(crate) fn logging(text: &'static str) -> Handler {
    Handler::new(async move |_, request| {
        request.logs.write(text.as_bytes());
        Ok(InvokeResponse::new(StatusCode::OK, ""))
    })
}

/// An authenticator that panics, with words that are for nobody.
#[derive(Debug)]
pub(crate) struct Panics;

#[async_trait]
impl Authenticator for Panics {
    async fn authenticate(&self, _: &http::request::Parts) -> function_gateway_core::Result<Option<Authenticated>> {
        panic!("the password is hunter2")
    }
}

/// A function that waits at a gate.
pub(crate) fn waiting(gate: &Gate) -> Handler {
    let gate = gate.clone();
    Handler::new(move |_, _| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Ok(InvokeResponse::new(StatusCode::OK, "in time"))
        }
    })
}

/// What functions got: method, path and query in one line, and the headers.
pub(crate) type Seen = Arc<Mutex<Vec<(String, HeaderMap)>>>;

/// Remembers what functions get.
pub(crate) fn remembering() -> (Handler, Seen) {
    let seen = Seen::default();
    let keep = Arc::clone(&seen);
    let handler = Handler::new(move |_, request| {
        let line = format!("{} {}?{}", request.method, request.path, request.query.as_deref().unwrap_or("-"));
        keep.lock().unwrap().push((line, request.headers));
        async { Ok(InvokeResponse::new(StatusCode::OK, "")) }
    });
    (handler, seen)
}
