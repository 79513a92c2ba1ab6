//! A network that is cut between a gateway and the database while invocations are accepted and executed.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use function_gateway_core::store::sql::SqlStore;
use function_gateway_core::{CallContext, Gateway, QueueManager as _, SystemClock, WorkerConfig};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, accept, check, create_functions, cx, empty, gateway, submit_until};
use crate::common::{Database, Listens, assert_counted, open, options};
use crate::crashes::seed;

/// How long a gateway waits for the database. It is shorter than a lease lasts.
const OPERATION: Duration = Duration::from_millis(400);

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Works,
    /// Every connection ends, and there is no new one.
    Cut,
    /// Nothing comes through, and nobody is told.
    Silent,
}

/// Passes bytes on to a server as the network lets it.
async fn pass_on(listener: TcpListener, server: Listens, network: watch::Receiver<Network>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let (server, network) = (server.clone(), network.clone());
        tokio::spawn(async move {
            // What ends by an error ends for both sides.
            let _ = match server {
                Listens::Tcp(address) => connected(client, TcpStream::connect(address), network).await,
                Listens::Unix(path) => connected(client, UnixStream::connect(path), network).await,
            };
        });
    }
}

async fn connected<S: AsyncRead + AsyncWrite + Unpin>(
    mut client: TcpStream,
    server: impl Future<Output = io::Result<S>>,
    mut network: watch::Receiver<Network>,
) -> io::Result<()> {
    let works = *network.borrow_and_update() == Network::Works;
    let mut server = if works { Some(server.await?) } else { None };
    if let Some(server) = &mut server {
        tokio::select! {
            ended = copy_bidirectional(&mut client, server) => return ended.map(|_| ()),
            _ = network.changed() => {}
        }
    }
    // Neither side learns that nothing comes through.
    let _ = network.wait_for(|network| *network != Network::Silent).await;
    Ok(())
}

/// Whether a gateway can ask its database something.
async fn answers(gateway: &Gateway, cx: &CallContext) -> bool {
    gateway.queue_depth(cx, None).await.is_ok()
}

/// Cuts the network of one of two gateways again and again.
pub(crate) async fn a_network_that_is_cut(database: Database, times: u64) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("executed");
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let (server, url) = database.by_way_of(listener.local_addr().unwrap());
    let (network, works) = watch::channel(Network::Works);
    let proxy = tokio::spawn(pass_on(listener, server, works));

    let near = gateway(&open(&database, options()).await, &file, Arc::new(SystemClock)).await;
    create_functions(&near).await;
    // The machine may be busy, and the time for an operation is short.
    let connecting = async {
        loop {
            match SqlStore::connect(&url, options().with_operation_timeout(OPERATION)).await {
                Ok(store) => return store,
                Err(error) => assert!(error.is_transient(), "{error:?}"),
            }
        }
    };
    let far = tokio::time::timeout(PATIENCE, connecting).await.expect("the database is reached");
    let far = gateway(&far, &file, Arc::new(SystemClock)).await;
    let (sender, receiver) = channel();
    let stop = CancellationToken::new();
    let mut tasks = Vec::new();
    for (gateway, submitters) in [(&near, 1), (&far, 4)] {
        let _workers = gateway.start_workers(WorkerConfig::default().with_concurrency(16)).unwrap();
        let submitting =
            (0..submitters).map(|number| submit_until(gateway.clone(), number, sender.clone(), stop.clone()));
        tasks.extend(submitting.map(tokio::spawn));
    }
    let mut random = fastrand::Rng::with_seed(seed());
    let mut accepted = BTreeSet::new();
    let cx = cx();
    for _ in 0..times {
        tokio::task::block_in_place(|| accept(&mut accepted, &receiver, random.usize(20..200)));
        network.send(random.choice([Network::Cut, Network::Silent]).unwrap()).unwrap();
        let lost = async { while answers(&far, &cx).await {} };
        tokio::time::timeout(PATIENCE, lost).await.expect("the network is cut");
        // What was accepted before says nothing of now. Some leases run out meanwhile, and others don't.
        accepted.extend(receiver.try_iter());
        tokio::task::block_in_place(|| accept(&mut accepted, &receiver, random.usize(1..100)));
        network.send(Network::Works).unwrap();
        let found = async { while !answers(&far, &cx).await {} };
        tokio::time::timeout(PATIENCE, found).await.expect("the database is used again");
    }
    stop.cancel();
    drop(sender);
    for task in tasks {
        task.await.unwrap();
    }
    accepted.extend(receiver);
    far.shutdown(PATIENCE).await.unwrap();
    empty(&near).await;
    check(&near, &accepted, &file).await;
    assert_counted(&database).await;
    proxy.abort();
}
