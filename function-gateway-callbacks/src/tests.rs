//! What names lead to, with the system's resolver replaced: a test has no public addresses, so it allows some that are not.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use function_gateway_core::{
    CallContext, Callback, CallbackSender as _, Delivery, Error, ErrorKind, InvocationId, Principal, Retry, Timestamp,
};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::resolve::Lookup;
use crate::{CallbackConfig, HttpCallbacks};

/// Answers each question with the next of these; none of them is a name that does not exist.
#[derive(Debug)]
struct Scripted(Mutex<VecDeque<Vec<IpAddr>>>);

#[async_trait]
impl Lookup for Scripted {
    async fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        assert_eq!(host, "receiver.test");
        self.0.lock().unwrap().pop_front().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Callbacks that may reach 127.0.0.1 and no other address of this machine.
struct Bench {
    callbacks: HttpCallbacks,
    names: Arc<Scripted>,
}

impl Bench {
    fn new(answers: &[&[&str]]) -> Self {
        let parse = |addresses: &&[&str]| addresses.iter().map(|address| address.parse().unwrap()).collect();
        let names = Arc::new(Scripted(Mutex::new(answers.iter().map(parse).collect())));
        let config = CallbackConfig::new().allow_http().allow_networks(["127.0.0.1"]);
        Self { callbacks: HttpCallbacks::with_lookup(config, Arc::clone(&names) as _).unwrap(), names }
    }

    async fn send(&self, port: u16) -> Result<(), Error> {
        let cx = CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()));
        let url = format!("http://receiver.test:{port}/hooks?token=canary");
        assert_eq!(self.callbacks.check(&url), None);
        self.callbacks.send(&cx, Callback::new(InvocationId::generate(), url, Timestamp::now(), "{}")).await
    }
}

/// A receiver that closes each connection, so that each callback looks the name up.
async fn receiver() -> MockServer {
    let server = MockServer::start().await;
    let answer = ResponseTemplate::new(204).insert_header("connection", "close");
    Mock::given(any()).respond_with(answer).mount(&server).await;
    server
}

/// A port at which both addresses listen; nothing may come to the second.
async fn receiver_and_trap() -> (MockServer, TcpListener) {
    let server = receiver().await;
    let trap = TcpListener::bind(("127.0.0.2", server.address().port())).unwrap();
    trap.set_nonblocking(true).unwrap();
    (server, trap)
}

fn is_untouched(trap: &TcpListener) -> bool {
    trap.accept().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[track_caller]
fn assert_refused(error: &Error) {
    assert_eq!(
        (error.kind(), error.retry(), error.delivery()),
        (ErrorKind::PermissionDenied, Retry::Never, Delivery::NotSent),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_the_second_time_leads_no_further() {
    let (server, trap) = receiver_and_trap().await;
    let bench = Bench::new(&[&["127.0.0.1"], &["127.0.0.2"], &["127.0.0.1"]]);
    let port = server.address().port();
    bench.send(port).await.unwrap();
    assert_refused(&bench.send(port).await.unwrap_err());
    assert!(is_untouched(&trap));
    bench.send(port).await.unwrap();
    assert!(bench.names.0.lock().unwrap().is_empty());
    assert_eq!(server.received_requests().await.unwrap().len(), 2);
}

#[tokio::test]
async fn of_several_addresses_those_that_are_refused_are_left_out() {
    let (server, trap) = receiver_and_trap().await;
    for answer in [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]] {
        Bench::new(&[&answer]).send(server.address().port()).await.unwrap();
    }
    assert!(is_untouched(&trap));
}

#[tokio::test]
async fn a_name_that_leads_inside_is_refused_and_the_developer_does_not_learn_where() {
    let (server, trap) = receiver_and_trap().await;
    for inside in ["127.0.0.2", "::1", "::ffff:127.0.0.2", "64:ff9b::7f00:2", "10.0.0.1", "169.254.169.254", "0.0.0.0"]
    {
        let error = Bench::new(&[&[inside]]).send(server.address().port()).await.unwrap_err();
        assert_refused(&error);
        assert!(!error.to_string().contains(inside), "{error}");
        let (debug, address) = (format!("{error:?}"), inside.parse::<IpAddr>().unwrap());
        assert!(debug.contains(&address.to_string()), "the operators do: {debug}");
        assert!(!debug.contains("canary"), "{debug}");
    }
    assert!(is_untouched(&trap));
    assert_eq!(server.received_requests().await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_name_that_leads_nowhere_is_tried_again() {
    for answers in [&[][..], &[&[][..]][..]] {
        let error = Bench::new(answers).send(1).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry(), error.delivery()),
            (ErrorKind::Unavailable, Retry::Transient, Delivery::NotSent),
            "{error:?}"
        );
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    }
}
