//! Where a worker is told to listen, and whether it does.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use function_gateway_core::{Error, ErrorKind, Result};
use rustix::process::Pid;

use super::http::{Address, Client};
use super::sockets::{self, Listener};
use crate::identity::Identity;
use crate::settings::{Annotations, is_reserved};
use crate::threads::Threads;

/// Between two looks at a worker that is starting: from the first, growing, to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LAST_PAUSE: Duration = Duration::from_millis(50);
/// How many ports are tried until one is free that no other worker is about to take.
const PORTS_TRIED: u32 = 100;

/// How a worker is told where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    kind: Kind,
    pub(crate) variable: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Port,
    Address,
    Socket,
}

impl Listen {
    /// What the annotations say.
    pub(crate) fn of(annotations: &mut Annotations<'_>) -> Self {
        let kind = match annotations.get("listen") {
            None | Some("port") => Kind::Port,
            Some("address") => Kind::Address,
            Some("socket") => Kind::Socket,
            Some(_) => {
                annotations.refuse("listen", "is none of \"port\", \"address\" and \"socket\"");
                Kind::Port
            }
        };
        let usual = match kind {
            Kind::Port => "PORT",
            Kind::Address => "LISTEN_ADDRESS",
            Kind::Socket => "LISTEN_SOCKET",
        };
        let variable = annotations.get("listen-variable").unwrap_or(usual);
        if variable.is_empty() || variable.contains(['=', '\0']) || variable.chars().any(char::is_control) {
            annotations.refuse("listen-variable", "is not the name of a variable");
        } else if is_reserved(variable.as_ref()) {
            annotations.refuse("listen-variable", "is one of the names that the driver sets otherwise");
        }
        Self { kind, variable: variable.to_owned() }
    }

    /// A place for one worker. Blocks shortly.
    pub(crate) fn place(&self, ports: &Arc<Ports>, folder: &Path, owner: Identity) -> io::Result<Place> {
        if self.kind == Kind::Socket {
            let folder = tempfile::Builder::new().prefix("function-").tempdir_in(folder)?;
            std::os::unix::fs::chown(folder.path(), owner.user, owner.group)?;
            let path = folder.path().join("socket");
            let value = path.display().to_string();
            return Ok(Place { address: Address::Socket(path), value, _kept: Kept::Folder(folder) });
        }
        let reserved = Ports::reserve(ports)?;
        let port = reserved.port;
        let value = match self.kind {
            Kind::Address => format!("{}:{port}", Ipv4Addr::LOCALHOST),
            _ => port.to_string(),
        };
        Ok(Place { address: Address::Port(port), value, _kept: Kept::Port(reserved) })
    }
}

/// Where one worker is to listen. Kept as long as the worker.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) address: Address,
    /// What the worker is told.
    pub(crate) value: String,
    _kept: Kept,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held for what dropping it does")]
enum Kept {
    Port(Reserved),
    Folder(tempfile::TempDir),
}

/// The ports that the workers of a driver were given. A port is free for the system until its worker listens, so the
/// driver itself has to keep it from giving one to two.
#[derive(Debug, Default)]
pub(crate) struct Ports(Mutex<HashSet<u16>>);

#[derive(Debug)]
struct Reserved {
    port: u16,
    ports: Arc<Ports>,
}

impl Ports {
    fn reserve(this: &Arc<Self>) -> io::Result<Reserved> {
        for _ in 0..PORTS_TRIED {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            if this.0.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
                return Ok(Reserved { port, ports: Arc::clone(this) });
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.ports.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.port);
    }
}

/// Waits until a worker listens where it was told to, and until it answers its readiness path with 2xx if it has one.
/// `waiting_for` says what it is waiting for, for whoever gives up. Cancel-safe.
///
/// # Errors
/// Where somebody else listens there.
pub(crate) async fn ready(
    client: &Arc<Client>,
    readiness_path: Option<&str>,
    group: Pid,
    threads: &Threads,
    waiting_for: &Mutex<Cow<'static, str>>,
) -> Result<()> {
    let now_for = |what: Cow<'static, str>| *waiting_for.lock().unwrap_or_else(PoisonError::into_inner) = what;
    let mut pauses = Pauses(FIRST_PAUSE);
    now_for("to listen".into());
    while !listens(client, group, threads).await? {
        pauses.next().await;
    }
    let Some(path) = readiness_path else { return Ok(()) };
    now_for(format!("to answer {path}").into());
    loop {
        match client.probe(path).await {
            Ok(status) if status.is_success() => return Ok(()),
            Ok(status) => now_for(format!("to answer {path} with 2xx, it answers {status},").into()),
            Err(error) => now_for(format!("to answer {path} ({error})").into()),
        }
        pauses.next().await;
    }
}

struct Pauses(Duration);

impl Pauses {
    async fn next(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 3 / 2).min(LAST_PAUSE);
    }
}

async fn listens(client: &Client, group: Pid, threads: &Threads) -> Result<bool> {
    let Ok(owner) = client.knock().await else { return Ok(false) };
    let listener = match (client.address(), owner) {
        (Address::Port(port), _) => {
            let port = *port;
            // Where there is no thread now, it is looked again.
            let Ok(listener) = threads.blocking(move || sockets::listener(port, group)).await else { return Ok(false) };
            listener
        }
        (Address::Socket(_), owner) => {
            let owner = owner.and_then(|pid| sockets::group_of(pid.cast_unsigned()));
            Ok(if owner == Some(group) { Listener::Ours } else { Listener::Foreign })
        }
    };
    match listener {
        Ok(Listener::Ours) => Ok(true),
        Ok(Listener::Nobody) => Ok(false),
        Ok(Listener::Foreign) => {
            Err(Error::new(ErrorKind::Unavailable, format!("another process listens on {}", client.address())))
        }
        Err(error) => {
            let message = "it can't be told whose sockets they are";
            Err(Error::new(ErrorKind::Engine, message).with_source(error))
        }
    }
}

/// Where a worker does listen, for one that is not found where it was told to. Blocks on `/proc`.
pub(crate) fn elsewhere(group: Pid) -> Option<String> {
    let addresses = sockets::listening_addresses(group).ok()?;
    let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    (!list.is_empty()).then(|| list.join(", "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use function_gateway_core::{FunctionSpec, ProcessWorkload};

    use super::*;

    fn listen(annotations: &[(&str, &str)]) -> (Listen, usize) {
        let mut spec = FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("/bin/sh"));
        for (name, value) in annotations {
            spec = spec.with_annotation(*name, *value);
        }
        let mut read = Annotations::of(&spec);
        let listen = Listen::of(&mut read);
        (listen, read.finish().len())
    }

    #[test]
    fn each_kind_has_its_usual_variable() {
        for (chosen, variable) in [("port", "PORT"), ("address", "LISTEN_ADDRESS"), ("socket", "LISTEN_SOCKET")] {
            let (read, wrong) = listen(&[("listen", chosen)]);
            assert_eq!((read.variable.as_str(), wrong), (variable, 0));
            let (read, wrong) = listen(&[("listen", chosen), ("listen-variable", "FUNC_PORT")]);
            assert_eq!((read.variable.as_str(), wrong), ("FUNC_PORT", 0));
        }
        assert_eq!(listen(&[]), listen(&[("listen", "port")]));
    }

    #[test]
    fn what_is_no_place_or_no_variable_is_refused() {
        for wrong in
            [("listen", "tcp"), ("listen-variable", "A=B"), ("listen-variable", ""), ("listen-variable", "FUNCTION_X")]
        {
            assert_eq!(listen(&[wrong]).1, 1, "{wrong:?}");
        }
    }

    #[test]
    fn no_port_is_given_twice_at_a_time() {
        let ports = Arc::new(Ports::default());
        let (port, _) = listen(&[]);
        let places: Vec<_> =
            (0..500).map(|_| port.place(&ports, Path::new("/tmp"), Identity::default()).unwrap()).collect();
        let values: HashSet<_> = places.iter().map(|place| place.value.clone()).collect();
        assert_eq!(values.len(), 500);
        drop(places);
        assert!(ports.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_socket_lies_in_a_folder_of_its_own_that_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, _) = listen(&[("listen", "socket")]);
        let place = socket.place(&Arc::default(), folder.path(), Identity::default()).unwrap();
        let Address::Socket(path) = place.address.clone() else { panic!("{place:?}") };
        assert_eq!(place.value, path.to_str().unwrap());
        assert!(path.parent().unwrap().is_dir());
        drop(place);
        assert!(!path.parent().unwrap().exists());
        if rustix::process::geteuid().is_root() {
            let owner = Identity { user: Some(65_534), group: Some(65_533) };
            let place = socket.place(&Arc::default(), folder.path(), owner).unwrap();
            let Address::Socket(path) = &place.address else { panic!("{place:?}") };
            let folder = path.parent().unwrap().metadata().unwrap();
            assert_eq!((folder.uid(), folder.gid()), (65_534, 65_533));
        }
    }
}
