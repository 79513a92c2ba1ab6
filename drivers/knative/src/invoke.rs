//! Calls of functions: by which address, what is sent, and what is made of the answer.

use std::time::Duration;

use bytes::Bytes;
use function_gateway_core::forward::{
    Broken, Chunks, Fault, HttpAnswer, HttpClient, HttpClientOptions, Payload, PayloadError, RunningCall,
    check_repeats, collected, one_line, streamed, until_stopped, wire_headers, wire_path,
};
use function_gateway_core::{
    Body, CallContext, Delivery, DriverRequest, Error, ErrorKind, InvokeResponse, Result, for_one_hop,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use tokio::time::Instant;
use url::Url;

use crate::api::{Service, Traffic, label};
use crate::config::{KnativeConfig, KnativeRouting, origin};
use crate::error::{self, Meaning, Signs, engine_timeout, not_deployed, not_ready};
use crate::mapping;
use crate::names::Target;
use crate::settings;
use crate::watch::Watches;

/// What the ingress adds to an answer. A caller gets what the function has said, and not which engine it ran on.
const OF_THE_ENGINE: [HeaderName; 2] =
    [HeaderName::from_static("x-envoy-upstream-service-time"), HeaderName::from_static("x-envoy-decorator-operation")];

// Addresses

/// By which address a generation is called.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    url: Url,
    /// The same, as it is sent.
    uri: Uri,
    /// By the ingress for names inside the cluster.
    is_local: bool,
}

/// How the addresses of routes are made.
#[derive(Debug)]
pub(crate) struct Addresses {
    routing: Routing,
}

#[derive(Debug)]
enum Routing {
    Reported,
    Ingress { outside: Url, local: Url },
    ClusterLocal,
}

impl Addresses {
    pub(crate) fn new(routing: &KnativeRouting) -> Result<Self> {
        let read = |url: &str| origin(url).map_err(|reason| Error::new(ErrorKind::InvalidArgument, reason));
        let routing = match routing {
            KnativeRouting::Route => Routing::Reported,
            KnativeRouting::Ingress { url, local_url } => {
                Routing::Ingress { outside: read(url)?, local: read(local_url.as_ref().unwrap_or(url))? }
            }
            KnativeRouting::ClusterLocal => Routing::ClusterLocal,
        };
        Ok(Self { routing })
    }

    /// The address of a name that the route tells.
    pub(crate) fn route(&self, service: &Service, part: &Traffic) -> Option<Route> {
        let mut url = Url::parse(part.url.as_deref()?).ok()?;
        let visibility = service.metadata.labels.get(label::VISIBILITY);
        let is_local = visibility.is_some_and(|visibility| visibility == label::CLUSTER_LOCAL);
        match &self.routing {
            Routing::Reported => {}
            Routing::Ingress { outside, local } => {
                let ingress = if is_local { local } else { outside };
                url.set_scheme(ingress.scheme()).ok()?;
                url.set_port(ingress.port()).ok()?;
            }
            Routing::ClusterLocal if is_local => {}
            Routing::ClusterLocal => {
                let address = service.status.address.as_ref()?.url.as_deref()?;
                let mut inside = Url::parse(address).ok()?;
                let host = format!("{}-{}", part.tag.as_deref()?, inside.host_str()?);
                inside.set_host(Some(&host)).ok()?;
                url = inside;
            }
        }
        Some(Route { uri: url.as_str().parse().ok()?, url, is_local })
    }
}

/// The HTTP clients that functions are called by.
pub(crate) struct Callers {
    outside: HttpClient,
    local: HttpClient,
}

impl Callers {
    pub(crate) fn new(config: &KnativeConfig, addresses: &Addresses) -> Result<Self> {
        match &addresses.routing {
            Routing::Ingress { outside, local } => {
                let to = |url: &Url| {
                    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
                    (host.to_owned(), url.port_or_known_default().unwrap_or(80))
                };
                Ok(Self { outside: build(config, Some(to(outside)))?, local: build(config, Some(to(local)))? })
            }
            _ => {
                let client = build(config, None)?;
                Ok(Self { local: client.clone(), outside: client })
            }
        }
    }

    fn by(&self, route: &Route) -> &HttpClient {
        if route.is_local { &self.local } else { &self.outside }
    }
}

/// `ingress` is where every name leads: those of functions need not resolve where the host is.
fn build(config: &KnativeConfig, ingress: Option<(String, u16)>) -> Result<HttpClient> {
    let mut options = HttpClientOptions::default();
    options.connect_timeout = config.connect_timeout;
    options.max_idle_connections = config.max_idle_connections;
    options.idle_connection_timeout = config.idle_connection_timeout;
    options.http_version = config.http_version;
    options.ca_pem.clone_from(&config.ca_pem);
    options.leads_to = ingress;
    HttpClient::new(&options)
}

// Calls

/// What calls of functions need.
pub(crate) struct Caller<'a> {
    pub(crate) callers: &'a Callers,
    pub(crate) watches: &'a Watches,
    pub(crate) config: &'a KnativeConfig,
    pub(crate) cx: &'a CallContext,
}

/// A call as it is sent. It is put together before anything waits, so that the future of a call is small.
struct Call {
    sent: Request<Payload>,
    /// Where the payload's own error is found; only a stream has one.
    broke: Option<PayloadError>,
    streaming: bool,
    limit: u64,
    /// When Knative would break the answer off, where nobody ends the call before.
    until: Option<Instant>,
}

/// Passes a call on.
pub(crate) async fn invoke(
    caller: Caller<'_>,
    target: Target<'_>,
    request: DriverRequest,
    running: RunningCall,
) -> Result<InvokeResponse> {
    check_method(&request)?;
    let stop = running.stop_signal();
    let held = caller.watches.known(target.namespace, target.service);
    let route = held.as_ref().filter(|held| !held.is_foreign(&target)).and_then(|held| held.route(target.generation));
    match route {
        Some(route) => {
            let client = caller.callers.by(route);
            let call = Call::new(caller.cx, caller.config, route, request)?;
            until_stopped(&stop, execute(&caller, client, &target, call, running)).await
        }
        // Boxed, as it is rare and would make the future of every call larger.
        None => until_stopped(&stop, Box::pin(find_and_execute(&caller, &target, request, running))).await,
    }
}

/// Executes a function that is not known yet, or not any more.
async fn find_and_execute(
    caller: &Caller<'_>,
    target: &Target<'_>,
    request: DriverRequest,
    running: RunningCall,
) -> Result<InvokeResponse> {
    let unsent = |error: Error| error.with_delivery(Delivery::NotSent);
    let mut held = caller.watches.held(target.namespace, target.service).await.map_err(unsent)?;
    let lacks = |held: &crate::watch::Held| held.route(target.generation).is_none() || !held.holds(target);
    if held.as_ref().is_some_and(|held| lacks(held)) {
        // The watch may be behind what another process has just made.
        held = caller.watches.ask(target.namespace, target.service).await.map_err(unsent)?;
    }
    let held = held.filter(|held| held.holds(target)).ok_or_else(not_deployed)?;
    let route = held.route(target.generation).ok_or_else(not_ready)?;
    let call = Call::new(caller.cx, caller.config, route, request)?;
    execute(caller, caller.callers.by(route), target, call, running).await
}

impl Call {
    fn new(cx: &CallContext, config: &KnativeConfig, route: &Route, request: DriverRequest) -> Result<Self> {
        let url = url(route, &request)?;
        let spec = &request.revision.spec;
        let longest = mapping::longest_call(spec, config);
        let until = match cx.deadline() {
            Some(deadline) if deadline.remaining() < longest => None,
            _ => Some(Instant::now() + longest - MARGIN.min(longest / 2)),
        };
        let streaming = spec.streaming;
        let (payload, broke) = Payload::of(request.body);
        let mut sent = Request::new(payload);
        (*sent.method_mut(), *sent.uri_mut()) = (request.method, url);
        *sent.headers_mut() = wire_headers(cx, request.headers);
        Ok(Self { sent, broke, streaming, limit: request.max_response_bytes, until })
    }
}

/// How much earlier than Knative a call is ended.
const MARGIN: Duration = Duration::from_millis(500);

/// Any method that HTTP has for a resource; what may be executed twice only where that is taken.
fn check_method(request: &DriverRequest) -> Result<()> {
    if request.method == Method::CONNECT {
        let reason = "the engine does not pass the method CONNECT on";
        return Err(Error::new(ErrorKind::Unsupported, reason).with_operation("invoke"));
    }
    let accepts = settings::accepts_repeats(&request.revision.spec);
    check_repeats(request, accepts, settings::ACCEPT_REPEATS)
}

/// The address of a call.
fn url(route: &Route, request: &DriverRequest) -> Result<Uri> {
    let query = request.query.as_deref();
    let path = wire_path(&request.path, query)?;
    if path.is_empty() && query.is_none() {
        return Ok(route.uri.clone());
    }
    let mut url = route.url.clone();
    if !path.is_empty() {
        url.set_path(&path);
    }
    if query.is_some() {
        url.set_query(query);
    }
    url.as_str().parse().map_err(|error: http::uri::InvalidUri| Broken::NotWritten.error(error))
}

async fn execute(
    caller: &Caller<'_>,
    client: &HttpClient,
    target: &Target<'_>,
    call: Call,
    running: RunningCall,
) -> Result<InvokeResponse> {
    let Call { sent, broke, streaming, limit, until } = call;
    let is_head = *sent.method() == Method::HEAD;
    let mut answer = match client.send(sent).await {
        Ok(answer) => answer,
        Err(error) => return Err(broke.and_then(|broke| broke.take()).unwrap_or(error)),
    };
    let (status, declared) = (answer.status, answer.declared());
    let mut headers = std::mem::take(&mut answer.headers);
    let signs = Signs::of(status, &headers, declared, is_head);
    let mut parts = Parts { read: None, answer, until };
    match error::of_call(&signs) {
        Meaning::Answer => {}
        // Boxed, as these are rare and would make the future of every call larger.
        Meaning::Ask => Box::pin(parts.ask(caller, target, &signs, &headers)).await?,
        Meaning::Error(fault) => return Err(Box::pin(parts.fault(fault, &signs, &headers)).await),
        Meaning::Missing => return Err(Box::pin(missing(caller, target)).await),
    }
    for_one_hop(&mut headers);
    for name in &OF_THE_ENGINE {
        headers.remove(name);
    }
    if headers.get(header::SERVER).is_some_and(|server| *server == ENVOY) {
        headers.remove(header::SERVER);
    }
    if declared.is_some_and(|declared| declared > limit) && !is_head {
        return Err(Error::too_large(ErrorKind::OutputTooLarge, "function's answer", limit));
    }
    let body = match streaming {
        true => streamed(parts, declared, limit, running),
        false => Body::from(collected(parts, limit).await?),
    };
    let mut response = InvokeResponse::new(status, body);
    response.headers = headers;
    Ok(response)
}

/// What the ingress puts in place of what the function says of its server.
const ENVOY: HeaderValue = HeaderValue::from_static("envoy");

/// What it means that there is no route: the function may be gone, or not ready. Nothing was passed on in any case.
async fn missing(caller: &Caller<'_>, target: &Target<'_>) -> Error {
    let error = match caller.watches.ask(target.namespace, target.service).await {
        Ok(held) if held.as_ref().is_some_and(|held| held.holds(target)) => not_ready(),
        Ok(_) => not_deployed(),
        Err(error) => error,
    };
    error.with_delivery(Delivery::NotSent)
}

/// The function's answer, part by part.
struct Parts {
    /// What was read of it already.
    read: Option<Bytes>,
    answer: HttpAnswer,
    until: Option<Instant>,
}

impl Chunks for Parts {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        if let Some(read) = self.read.take() {
            return Ok(Some(read));
        }
        match self.until {
            None => self.answer.chunk().await,
            Some(until) => {
                tokio::time::timeout_at(until, self.answer.chunk()).await.unwrap_or_else(|_| Err(engine_timeout()))
            }
        }
    }
}

impl Parts {
    /// Reads a short text that may be Knative's own. The function's stays with the answer.
    async fn ask(
        &mut self,
        caller: &Caller<'_>,
        target: &Target<'_>,
        signs: &Signs,
        headers: &HeaderMap,
    ) -> Result<()> {
        let read = self.text().await?;
        let text = String::from_utf8_lossy(&read).into_owned();
        match error::of_text(signs.status, &text) {
            Meaning::Error(fault) => Err(fault.error(signs.status, headers, &text)),
            Meaning::Missing => Err(missing(caller, target).await.with_detail(one_line(&text))),
            Meaning::Answer | Meaning::Ask => {
                self.read = Some(read);
                Ok(())
            }
        }
    }

    async fn fault(&mut self, fault: Fault, signs: &Signs, headers: &HeaderMap) -> Error {
        // It only says more about an error that is known already.
        let read = tokio::time::timeout(TEXT_WITHIN, self.text()).await;
        let text = read.ok().and_then(Result::ok).unwrap_or_default();
        fault.error(signs.status, headers, &String::from_utf8_lossy(&text))
    }

    async fn text(&mut self) -> Result<Bytes> {
        let mut read = bytes::BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            read.extend_from_slice(&chunk);
            if u64::try_from(read.len()).unwrap_or(u64::MAX) >= error::MAX_OWN_TEXT {
                break;
            }
        }
        Ok(read.freeze())
    }
}

/// How long is waited for the text of an error.
const TEXT_WITHIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn route(routing: &KnativeRouting, is_local: bool) -> Option<String> {
        let labels = if is_local { json!({label::VISIBILITY: label::CLUSTER_LOCAL}) } else { json!({}) };
        let url = if is_local { "http://g1-fn.ns.svc.cluster.local" } else { "http://g1-fn.ns.lab" };
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "fn", "labels": labels},
            "status": {"address": {"url": "http://fn.ns.svc.cluster.local"}, "traffic": [{"tag": "g1", "url": url}]},
        }))
        .unwrap();
        let addresses = Addresses::new(routing).unwrap();
        addresses.route(&service, &service.status.traffic[0]).map(|route| route.url.to_string())
    }

    #[test]
    fn an_address_is_made_of_what_the_route_tells() {
        let ingress = |local: Option<&str>| KnativeRouting::Ingress {
            url: "http://10.0.0.7:8080".to_owned(),
            local_url: local.map(str::to_owned),
        };
        let inside = "http://g1-fn.ns.svc.cluster.local/";
        for (routing, is_local, expected) in [
            (KnativeRouting::Route, false, "http://g1-fn.ns.lab/"),
            (KnativeRouting::Route, true, inside),
            (ingress(None), false, "http://g1-fn.ns.lab:8080/"),
            (ingress(Some("https://10.0.0.8")), true, "https://g1-fn.ns.svc.cluster.local/"),
            (KnativeRouting::ClusterLocal, false, inside),
            (KnativeRouting::ClusterLocal, true, inside),
        ] {
            assert_eq!(route(&routing, is_local).as_deref(), Some(expected), "{routing:?}");
        }
    }
}
