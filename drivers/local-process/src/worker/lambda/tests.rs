use std::time::Duration;

use function_gateway_core::{
    Body, FunctionId, FunctionKey, FunctionSpec, Generation, LogSink, Principal, ProcessWorkload, RevisionReason,
    Timestamp,
};
use futures_util::{StreamExt as _, poll, stream};
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::answer::{Answer, Broken, Part, Verdict};
use super::*;
use crate::threads::Threads;
use crate::worker::sockets::group_of;

/// Longer than any of the tests takes: reached only where one has failed.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// The API, for a group that the test itself belongs to.
fn api() -> (RuntimeApi, TaskTracker) {
    api_for(group_of(std::process::id()).unwrap())
}

fn api_for(group: Pid) -> (RuntimeApi, TaskTracker) {
    let tasks = TaskTracker::new();
    tasks.close();
    let api = Listening::bind().unwrap().serve(group, &Handle::current(), &Threads::new(), &tasks).unwrap();
    (api, tasks)
}

fn cx(attempt_of: &str) -> CallContext {
    let id = uuid_of(attempt_of);
    CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap())).with_invocation_id(id)
}

fn uuid_of(name: &str) -> function_gateway_core::InvocationId {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(name.bytes()).for_each(|(byte, from)| *byte = from);
    function_gateway_core::InvocationId::from_bytes(bytes)
}

fn event(name: &str, body: impl Into<Body>) -> Event {
    let revision = Arc::new(Revision::new(
        FunctionKey::new("acme".parse().unwrap(), "greet".parse().unwrap()),
        FunctionId::generate(),
        Generation::FIRST,
        FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("/bin/true")),
        (Timestamp::now(), "ada".parse().unwrap()),
        RevisionReason::Created,
    ));
    Event::new(&cx(name), DriverRequest::new(revision, body, LogSink::detached(0))).unwrap()
}

type Frames = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, hyper::Error>>>>;

/// A worker's connection.
struct Worker(SendRequest<Frames>);

impl Worker {
    async fn connect(api: &RuntimeApi) -> Self {
        let stream = TcpStream::connect(api.address()).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn send(&mut self, request: http::request::Builder, frames: Vec<Frame<Bytes>>) -> Response<Incoming> {
        let frames: Vec<_> = frames.into_iter().map(Ok).collect();
        let request = request.header(HOST, "api").body(StreamBody::new(stream::iter(frames))).unwrap();
        soon("ready for a request", self.0.ready()).await.unwrap();
        soon("a response", self.0.send_request(request)).await.unwrap()
    }

    /// Asks for an invocation: gives its id and its payload.
    async fn next(&mut self) -> (String, Response<Incoming>) {
        let next = self.send(get("invocation/next"), Vec::new()).await;
        assert_eq!(next.status(), StatusCode::OK);
        (next.headers()["lambda-runtime-aws-request-id"].to_str().unwrap().to_owned(), next)
    }

    async fn post(&mut self, path: &str, body: &'static str) -> (StatusCode, String) {
        read(self.send(post(path), vec![Frame::data(body.into())]).await).await
    }
}

fn get(path: &str) -> http::request::Builder {
    Request::get(format!("/2018-06-01/runtime/{path}"))
}

fn post(path: &str) -> http::request::Builder {
    Request::post(format!("/2018-06-01/runtime/{path}"))
}

async fn read(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = soon("the body of a response", response.into_body().collect()).await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn posted(invocation: &mut Invocation) -> Posted {
    match soon("a reply", invocation.reply()).await.unwrap() {
        Reply::Posted(posted) => posted,
        other => panic!("{other:?}"),
    }
}

/// Reads an answer to its end, and tells the worker so.
async fn collect(posted: Posted) -> (StatusCode, HeaderMap, String, Option<function_gateway_core::FunctionFailure>) {
    let mut answer = Answer::new(posted.body);
    let (status, headers) = soon("a head", answer.head(&posted.headers)).await.unwrap();
    let mut all = Vec::new();
    let failure = loop {
        match soon("a part", answer.next()).await.unwrap() {
            Part::Data(data) => all.extend_from_slice(&data),
            Part::End(failure) => break failure,
        }
    };
    posted.verdict.send(Verdict::Taken).unwrap();
    (status, headers, String::from_utf8(all).unwrap(), failure)
}

#[tokio::test]
async fn a_worker_is_told_of_an_invocation_and_answers_it() {
    let (api, _) = api();
    let mut ready = Box::pin(api.ready());
    assert!(poll!(&mut ready).is_pending());
    let mut worker = Worker::connect(&api).await;
    for name in ["one", "two"] {
        let mut invocation = api.offer(event(name, "\"Ada\""));
        let (id, next) = worker.next().await;
        assert_eq!(id, format!("{}-1", uuid_of(name)));
        let header = |name: &str| next.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("lambda-runtime-invoked-function-arn"), "arn:aws:lambda:local:000000000000:function:greet");
        assert_eq!(header("content-type"), "application/json");
        let now = Timestamp::now().as_micros() / 1000;
        let left = header("lambda-runtime-deadline-ms").parse::<i64>().unwrap() - now;
        assert!(left > 23 * 3_600_000, "{left}");
        assert_eq!(read(next).await.1, "\"Ada\"");

        let path = format!("invocation/{id}/response");
        let (told, answer) =
            tokio::join!(worker.post(&path, "\"Hello\""), async { collect(posted(&mut invocation).await).await });
        assert_eq!(told, (StatusCode::ACCEPTED, r#"{"status":"OK"}"#.to_owned()));
        let (status, headers, body, failure) = answer;
        assert_eq!((status, body.as_str(), failure), (StatusCode::OK, "\"Hello\"", None));
        assert_eq!(headers[CONTENT_TYPE], "application/json");
    }
    soon("ready", ready).await.unwrap();
}

#[tokio::test]
async fn an_empty_payload_is_an_empty_object() {
    let (api, _) = api();
    let mut worker = Worker::connect(&api).await;
    let nothing = || Body::from_stream(stream::empty());
    for body in [Body::empty(), nothing(), nothing().with_declared_len(0)] {
        let _invocation = api.offer(event("empty", body));
        assert_eq!(read(worker.next().await.1).await.1, "{}");
    }
}

#[tokio::test]
async fn an_error_of_the_function_is_handed_on_as_it_came() {
    let (api, _) = api();
    let mut invocation = api.offer(event("one", "1"));
    let mut worker = Worker::connect(&api).await;
    let (id, _) = worker.next().await;
    let document = r#"{"errorMessage": "no", "errorType": "ValueError"}"#;
    let path = format!("invocation/{id}/error");
    let (told, answer) = tokio::join!(worker.post(&path, document), async {
        let posted = posted(&mut invocation).await;
        assert!(posted.is_error);
        collect(posted).await
    });
    assert_eq!((told.0, answer.2.as_str()), (StatusCode::ACCEPTED, document));
}

#[tokio::test]
async fn a_worker_that_cannot_start_says_why() {
    let (api, _) = api();
    let mut worker = Worker::connect(&api).await;
    let document = r#"{"errorMessage": "no module named x", "errorType": "Runtime.ImportModuleError"}"#;
    assert_eq!(worker.post("init/error", document).await.0, StatusCode::ACCEPTED);
    let error = soon("ready", api.ready()).await.unwrap_err();
    assert!(error.message().ends_with("Runtime.ImportModuleError: no module named x"), "{error}");
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::FunctionBroken, Delivery::NotSent));
    assert!(error.is_transient());
    assert_eq!(api.init_error().unwrap().message(), error.message());
    // It is said once.
    assert_eq!(worker.post("init/error", document).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_worker_that_has_started_can_no_longer_say_that_it_cannot() {
    let (api, _) = api();
    let _invocation = api.offer(event("one", "1"));
    let mut worker = Worker::connect(&api).await;
    worker.next().await;
    assert_eq!(worker.post("init/error", "{}").await.0, StatusCode::FORBIDDEN);
    assert!(api.init_error().is_none());
}

#[tokio::test]
async fn an_answer_has_a_prelude_and_may_fail_at_its_end() {
    let (api, _) = api();
    let mut invocation = api.offer(event("one", "1"));
    let mut worker = Worker::connect(&api).await;
    let (id, _) = worker.next().await;
    let prelude = r#"{"statusCode": 201, "headers": {"x-a": "b"}, "cookies": ["c=d"]}"#;
    let mut trailers = HeaderMap::new();
    trailers.insert("lambda-runtime-function-error-type", "Late".parse().unwrap());
    // {"errorMessage": "too late"}
    trailers.insert("lambda-runtime-function-error-body", "eyJlcnJvck1lc3NhZ2UiOiAidG9vIGxhdGUifQ==".parse().unwrap());
    let frames = vec![
        Frame::data(prelude.into()),
        // The end of the prelude comes in pieces, and is followed at once.
        Frame::data(Bytes::from_static(&[0; 3])),
        Frame::data(Bytes::from_static(b"\0\0\0\0\0one")),
        Frame::data("two".into()),
        Frame::trailers(trailers),
    ];
    let request = post(&format!("invocation/{id}/response"))
        .header("lambda-runtime-function-response-mode", "streaming")
        .header("content-type", "application/vnd.awslambda.http-integration-response")
        .header("trailer", "lambda-runtime-function-error-type, lambda-runtime-function-error-body");
    let (told, answer) = tokio::join!(async { worker.send(request, frames).await.status() }, async {
        collect(posted(&mut invocation).await).await
    });
    let (status, headers, body, failure) = answer;
    assert_eq!((told, status, body.as_str()), (StatusCode::ACCEPTED, StatusCode::CREATED, "onetwo"));
    assert_eq!((&headers["x-a"], &headers["set-cookie"]), (&"b".parse().unwrap(), &"c=d".parse().unwrap()));
    let failure = failure.unwrap();
    assert_eq!((failure.kind.as_deref(), failure.message.as_str()), (Some("Late"), "too late"));
}

#[tokio::test]
async fn a_prelude_without_an_end_is_refused() {
    for size in [10, 300 * 1024] {
        let (api, _) = api();
        let mut invocation = api.offer(event("one", "1"));
        let mut worker = Worker::connect(&api).await;
        let (id, _) = worker.next().await;
        let request = post(&format!("invocation/{id}/response"))
            .header("content-type", "application/vnd.awslambda.http-integration-response; charset=utf-8");
        let answering = worker.send(request, vec![Frame::data(vec![b' '; size].into())]);
        let reading = async {
            let posted = posted(&mut invocation).await;
            let broken = Answer::new(posted.body).head(&posted.headers).await;
            assert!(matches!(broken, Err(Broken::Wrong(_))), "{broken:?}");
        };
        tokio::select! {
            () = reading => {}
            response = answering => panic!("the worker was told {response:?}"),
        }
    }
}

#[tokio::test]
async fn what_the_api_does_not_have_is_refused() {
    let (api, _) = api();
    let mut worker = Worker::connect(&api).await;
    let rows = [
        (post("invocation/who/response"), StatusCode::BAD_REQUEST, "InvalidRequestID"),
        (post("invocation/who/error"), StatusCode::BAD_REQUEST, "InvalidRequestID"),
        (post("invocation/next"), StatusCode::METHOD_NOT_ALLOWED, "InvalidMethod"),
        (get("init/error"), StatusCode::METHOD_NOT_ALLOWED, "InvalidMethod"),
        (get("restore/next"), StatusCode::NOT_FOUND, "InvalidPath"),
        (get("invocation/next/"), StatusCode::NOT_FOUND, "InvalidPath"),
        (Request::get("/2020-01-01/extension/event/next"), StatusCode::NOT_FOUND, "InvalidPath"),
        (Request::get("/"), StatusCode::NOT_FOUND, "InvalidPath"),
    ];
    for (request, status, kind) in rows {
        let (told, document) = read(worker.send(request, Vec::new()).await).await;
        assert_eq!(told, status, "{document}");
        let document: serde_json::Value = serde_json::from_str(&document).unwrap();
        assert_eq!(document["errorType"], kind);
        assert!(document["errorMessage"].is_string());
    }
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_refused() {
    let (api, _) = api();
    let invocation = api.offer(event("one", "1"));
    let mut worker = Worker::connect(&api).await;
    let (id, _) = worker.next().await;
    assert_eq!(invocation.delivery(), Delivery::Unknown);
    drop(invocation);
    let mut next = api.offer(event("two", "2"));
    let (status, _) = worker.post(&format!("invocation/{id}/response"), "late").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(poll!(Box::pin(next.reply())).is_pending(), "the answer of another invocation is taken for this one's");
    assert_eq!(next.delivery(), Delivery::NotSent);
    assert_eq!(worker.next().await.0, format!("{}-1", uuid_of("two")));
}

#[tokio::test]
async fn an_invocation_is_answered_once() {
    let (api, _) = api();
    let mut invocation = api.offer(event("one", "1"));
    let (mut one, mut two) = (Worker::connect(&api).await, Worker::connect(&api).await);
    let (id, _) = one.next().await;
    let path = format!("invocation/{id}/response");
    let (first, ()) = tokio::join!(one.post(&path, "1"), async {
        let posted = posted(&mut invocation).await;
        assert_eq!(two.post(&path, "2").await.0, StatusCode::FORBIDDEN);
        assert_eq!(collect(posted).await.2, "1");
    });
    assert_eq!(first.0, StatusCode::ACCEPTED);
    invocation.end();
    assert_eq!(two.post(&path, "3").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_worker_that_gives_up_waiting_loses_nothing() {
    let (api, _) = api();
    let mut worker = Worker::connect(&api).await;
    tokio::select! {
        started = soon("the first question", api.ready()) => started.unwrap(),
        _ = worker.next() => panic!("there is nothing to be told"),
    }
    drop(worker);
    let mut other = Worker::connect(&api).await;
    let mut asking = Box::pin(other.next());
    tokio::select! {
        () = soon("the second question", api.shared.until(|state| (state.polls == 2).then_some(()))) => {}
        _ = &mut asking => panic!("there is nothing to be told"),
    }
    let mut invocation = api.offer(event("one", "1"));
    assert_eq!(asking.await.0, format!("{}-1", uuid_of("one")));
    assert!(poll!(Box::pin(invocation.reply())).is_pending());
}

#[tokio::test]
async fn what_was_not_written_waits_for_the_next_question() {
    let (api, _) = api();
    let mut invocation = api.offer(event("one", "1"));
    let (taken, line) = api.shared.next().await;
    let (handed, _) = payload::Handed::new(Arc::clone(&api.shared), taken, line);
    assert_eq!(invocation.delivery(), Delivery::Unknown);
    drop(handed);
    assert_eq!(invocation.delivery(), Delivery::NotSent);
    let mut worker = Worker::connect(&api).await;
    assert_eq!(read(worker.next().await.1).await.1, "1");
    assert!(poll!(Box::pin(invocation.reply())).is_pending());
    invocation.end();

    // A stream can be sent once.
    let mut invocation = api.offer(event("two", Body::from_stream(stream::pending())));
    let (taken, line) = api.shared.next().await;
    drop(payload::Handed::new(Arc::clone(&api.shared), taken, line));
    assert!(matches!(soon("a reply", invocation.reply()).await, Ok(Reply::Unsent)));
}

#[tokio::test]
async fn an_invocation_that_nobody_asked_for_can_be_taken_back() {
    let (api, _) = api();
    let unsent = api.offer(event("one", "1")).withdraw().unwrap();
    let _invocation = api.offer(unsent);
    let mut worker = Worker::connect(&api).await;
    assert_eq!(worker.next().await.0, format!("{}-1", uuid_of("one")));
    let sent = api.offer(event("two", "2"));
    worker.next().await;
    assert!(sent.withdraw().is_none());
}

#[tokio::test]
async fn a_worker_that_asks_without_answering_has_skipped_it() {
    let (api, _) = api();
    let mut invocation = api.offer(event("one", "1"));
    let mut worker = Worker::connect(&api).await;
    worker.next().await;
    tokio::select! {
        reply = soon("a reply", invocation.reply()) => assert!(matches!(reply, Ok(Reply::Skipped)), "{reply:?}"),
        _ = worker.next() => panic!("there is nothing to be told"),
    }
}

#[tokio::test]
async fn a_payload_that_breaks_off_ends_the_call_with_its_error() {
    let (api, _) = api();
    let (go_on, went_on) = oneshot::channel();
    let broken = stream::once(async {
        went_on.await.unwrap();
        Err(Error::new(ErrorKind::PayloadTooLarge, "too much"))
    });
    let body = Body::from_stream(stream::iter([Ok(Bytes::from_static(b"first"))]).chain(broken));
    let mut invocation = api.offer(event("one", body));
    let mut worker = Worker::connect(&api).await;
    let mut payload = worker.next().await.1.into_body();
    assert_eq!(soon("a part", payload.frame()).await.unwrap().unwrap().into_data().unwrap(), "first");
    go_on.send(()).unwrap();
    let error = soon("an error", invocation.reply()).await.unwrap_err();
    assert_eq!((error.message(), error.delivery()), ("too much", Delivery::Executed));
    assert!(soon("the end", payload.frame()).await.unwrap().is_err(), "half a payload looks whole");
}

#[tokio::test]
async fn a_payload_ends_with_its_call() {
    let (api, _) = api();
    let first = stream::iter([Ok(Bytes::from_static(b"first"))]);
    let invocation = api.offer(event("one", Body::from_stream(first.chain(stream::pending()))));
    let mut worker = Worker::connect(&api).await;
    let mut payload = worker.next().await.1.into_body();
    assert_eq!(soon("a part", payload.frame()).await.unwrap().unwrap().into_data().unwrap(), "first");
    drop(invocation);
    assert!(soon("the end", payload.frame()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_reader_that_is_slow_slows_the_worker() {
    let (api, _) = api();
    let mut invocation = api.offer(event("one", "1"));
    let mut worker = Worker::connect(&api).await;
    let (id, _) = worker.next().await;
    let frames = (0..1024).map(|_| Frame::data(Bytes::from(vec![0; 64 * 1024]))).collect();
    let request = post(&format!("invocation/{id}/response"));
    let mut answering = Box::pin(worker.send(request, frames));
    let posted = tokio::select! {
        posted = posted(&mut invocation) => posted,
        _ = &mut answering => panic!("64 MiB are taken, and nobody has read them"),
    };
    let (response, (_, _, body, _)) = tokio::join!(answering, collect(posted));
    assert_eq!((response.status(), body.len()), (StatusCode::ACCEPTED, 64 << 20));
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_refused() {
    let (api, _) = api();
    let mut invocation = api.offer(event("one", "1"));
    let mut worker = Worker::connect(&api).await;
    let (id, _) = worker.next().await;
    let path = format!("invocation/{id}/response");
    let (told, ()) = tokio::join!(worker.post(&path, "too much"), async {
        let posted = posted(&mut invocation).await;
        posted.verdict.send(Verdict::TooLarge).unwrap();
    });
    assert_eq!(told.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(told.1.contains("Function.ResponseSizeTooLarge"), "{}", told.1);
}

#[tokio::test]
async fn garbage_is_no_request() {
    let (api, _) = api();
    let mut garbage = TcpStream::connect(api.address()).await.unwrap();
    garbage.write_all(b"\x16\x03\x01garbage\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon("an answer", garbage.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
    // Others are served.
    let _invocation = api.offer(event("one", "1"));
    assert_eq!(read(Worker::connect(&api).await.next().await.1).await.1, "1");
}

#[tokio::test]
async fn a_process_outside_of_the_group_is_turned_away() {
    let (api, _) = api_for(Pid::from_raw(i32::MAX).unwrap());
    let invocation = api.offer(event("one", "1"));
    let mut stranger = TcpStream::connect(api.address()).await.unwrap();
    let mut answer = String::new();
    soon("an answer", stranger.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer:?}");
    assert_eq!(invocation.delivery(), Delivery::NotSent);
}

#[tokio::test]
async fn closing_ends_the_listener_and_every_connection() {
    let (api, tasks) = api();
    let mut idle = Worker::connect(&api).await;
    assert_eq!(idle.post("nothing", "").await.0, StatusCode::NOT_FOUND);
    let mut half = TcpStream::connect(api.address()).await.unwrap();
    half.write_all(b"POST /2018").await.unwrap();
    let mut waiting = Worker::connect(&api).await;
    let waiting = tokio::spawn(async move { waiting.0.send_request(asking()).await.is_err() });
    soon("the question", api.ready()).await.unwrap();
    let address = api.address();
    api.close();
    soon("the end of its tasks", tasks.wait()).await;
    assert!(soon("the end of a connection", waiting).await.unwrap(), "a question is answered at the end");
    assert!(TcpStream::connect(address).await.is_err());
}

fn asking() -> Request<Frames> {
    get("invocation/next").header(HOST, "api").body(StreamBody::new(stream::iter(Vec::new()))).unwrap()
}

#[tokio::test]
async fn an_answer_that_is_read_is_read_to_its_end() {
    let (api, tasks) = api();
    let mut invocation = api.offer(event("one", "1"));
    let mut worker = Worker::connect(&api).await;
    let (id, _) = worker.next().await;
    let path = format!("invocation/{id}/response");
    let (_, ()) = tokio::join!(worker.post(&path, "answer"), async {
        let posted = posted(&mut invocation).await;
        api.close();
        assert_eq!(collect(posted).await.2, "answer");
    });
    drop(invocation);
    soon("the end of its tasks", tasks.wait()).await;
}
