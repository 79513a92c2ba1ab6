//! What is left when the host dies: a small process that kills the host's processes when the host is gone, and the search
//! for those of an earlier host that got away even so.
//!
//! The reaper is a shell that reads the numbers of process groups from a pipe. The pipe ends when the host does, in
//! whatever way, and then it kills every group that it knows.

use std::collections::HashSet;
use std::fs;
use std::io::{self, PipeWriter, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use function_gateway_core::{Delivery, Error, ErrorKind, FunctionId, GatewayId, Result};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

use crate::threads::Threads;

/// The variable that marks every process of a driver.
pub(crate) const VARIABLE: &str = "FUNCTION_HOST";

/// Reads `+ <group>` and `- <group>` until the pipe ends, then kills what it knows. `$1` stands in the environment of all
/// of the driver's processes: what the host started and could not tell any more is found by that, as is what has left its
/// group but kept its environment.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
groups=' '
while read -r change group; do
  case $change in
    +) groups="$groups$group " ;;
    -) case $groups in *" $group "*) groups="${groups%% $group *} ${groups#* $group }" ;; esac ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done 2>/dev/null
for file in $(grep -lsF -e "$1" /proc/[0-9]*/environ); do
  pid=${file#/proc/}
  kill -s KILL "${pid%/environ}"
done 2>/dev/null
"#;

/// Which driver, in which process, a process belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Mark(String);

impl Mark {
    /// The mark of a new driver in this process.
    pub(crate) fn new() -> io::Result<Self> {
        let pid = std::process::id();
        let started =
            start_time(pid).ok_or_else(|| io::Error::other("/proc does not tell when this process started"))?;
        Ok(Self(format!("{pid}/{started}/{}/{}", namespace()?, FunctionId::generate())))
    }

    /// The value of [`VARIABLE`] for a process that runs for a gateway.
    pub(crate) fn for_gateway(&self, gateway: &GatewayId) -> String {
        format!("{gateway}/{}", self.0)
    }
}

/// Of the process, as counted by the kernel since it booted (field 22 of `/proc/<pid>/stat`): with the number of a process
/// it names that process for ever.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    String::from_utf8_lossy(&stat).rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The namespace in which this process has its number.
fn namespace() -> io::Result<String> {
    Ok(fs::read_link("/proc/self/ns/pid")?.display().to_string())
}

/// Kills the processes that a gateway's earlier hosts on this machine have left. Those of a host that still runs are
/// nobody's business but that host's. Blocks on `/proc`.
pub(crate) fn sweep(gateway: &GatewayId) {
    let (Ok(namespace), Ok(processes)) = (namespace(), fs::read_dir("/proc")) else { return };
    for pid in processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let Some(pid) = Pid::from_raw(pid) else { continue };
        if !is_survivor(pid, gateway, &namespace) {
            continue;
        }
        // The number may be another's by now, but not any more once there is a descriptor for it.
        let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if is_survivor(pid, gateway, &namespace) {
            let killed = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            tracing::info!(
                pid = pid.as_raw_nonzero(),
                ?killed,
                "killed a process that a host of this gateway has left"
            );
        }
    }
}

fn is_survivor(pid: Pid, gateway: &GatewayId, namespace: &str) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) else { return false };
    let mut variables = environment.split(|byte| *byte == 0).filter_map(|variable| std::str::from_utf8(variable).ok());
    let mark = variables.find_map(|variable| variable.strip_prefix(VARIABLE)?.strip_prefix('='));
    let Some([of, host, started, within, _]) = mark.and_then(|mark| {
        let mut parts = mark.splitn(5, '/');
        Some([parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?])
    }) else {
        return false;
    };
    let host_started = host.parse().ok().and_then(start_time);
    of == gateway.as_str() && within == namespace && host_started.is_none_or(|now| started != now.to_string())
}

/// Knows the groups that run, and sees to it that the process that is to kill them does.
#[derive(Debug)]
pub(crate) struct Reaper {
    mark: Mark,
    runtime: Handle,
    threads: Threads,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    groups: HashSet<Pid>,
    shell: Option<Shell>,
    /// Counts the shells that there have been.
    started: u64,
}

#[derive(Debug)]
struct Shell {
    child: Child,
    pipe: PipeWriter,
    /// What the pipe had no room for.
    pending: Vec<u8>,
}

impl Shell {
    fn tell(&mut self, change: char, group: Pid) {
        self.pending.extend_from_slice(format!("{change} {}\n", group.as_raw_nonzero()).as_bytes());
        while !self.pending.is_empty() {
            match self.pipe.write(&self.pending) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // There is no room now, or nobody reads any more: then another shell is told all.
                Err(_) => break,
            }
        }
    }

    /// Closes the pipe and waits for the end, which follows at once.
    fn end(self) {
        let Self { mut child, pipe, .. } = self;
        drop(pipe);
        // Nothing but the host's own code can have waited for it before.
        let _ = child.wait();
    }
}

impl Reaper {
    pub(crate) fn new(mark: Mark, runtime: Handle, threads: Threads) -> Self {
        Self { mark, runtime, threads, state: Mutex::default() }
    }

    pub(crate) fn mark(&self) -> &Mark {
        &self.mark
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the shell, unless it runs. Blocks until it is loaded.
    ///
    /// # Errors
    /// Where it can't be started: then no process may be.
    pub(crate) fn ensure(self: &Arc<Self>) -> Result<()> {
        let mut state = self.state();
        if state.shell.is_some() {
            return Ok(());
        }
        let (mut shell, watched) = self.start().map_err(|error| {
            let message = "/bin/sh can't be started, which is to end functions when their host dies";
            Error::new(ErrorKind::Unavailable, message).with_delivery(Delivery::NotSent).with_source(error)
        })?;
        for group in &state.groups {
            shell.tell('+', *group);
        }
        state.shell = Some(shell);
        state.started += 1;
        let (reaper, number) = (Arc::downgrade(self), state.started);
        self.runtime.spawn(async move {
            // Readable once it has ended: somebody has killed it, or it is no longer needed.
            let ended = watched.readable().await.map(drop);
            let Some(reaper) = reaper.upgrade().filter(|_| ended.is_ok()) else { return };
            reaper.replace(number);
        });
        Ok(())
    }

    fn start(&self) -> io::Result<(Shell, AsyncFd<OwnedFd>)> {
        let (reader, pipe) = io::pipe()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "function-gateway-reaper", &self.mark.0]);
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").process_group(0);
        let mut child = command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let entered = self.runtime.enter();
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        #[expect(deprecated, reason = "its replacement is unsafe for the sake of types that may lose their descriptor")]
        let watched =
            pidfd.map_err(io::Error::from).and_then(|pidfd| AsyncFd::with_interest(pidfd, Interest::READABLE));
        drop(entered);
        match watched {
            Ok(watched) => Ok((Shell { child, pipe, pending: Vec::new() }, watched)),
            Err(error) => {
                drop(pipe);
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Has another shell started in place of one that has ended. Where that fails, the next process to be started does it.
    fn replace(self: Arc<Self>, number: u64) {
        let mut state = self.state();
        let ended = if state.started == number { state.shell.take() } else { None };
        drop(state);
        let Some(ended) = ended else { return };
        // It has ended, so this does not wait.
        ended.end();
        tracing::warn!("the process that ends functions when their host dies was killed; another one is started");
        let threads = self.threads.clone();
        let failed = |error: &dyn std::error::Error| tracing::error!(%error, "functions may outlive their host");
        let started = threads.start(move || {
            if let Err(error) = self.ensure() {
                failed(&error);
            }
        });
        if let Err(error) = started {
            failed(&error);
        }
    }

    /// A process leads a new group.
    pub(crate) fn register(&self, group: Pid) {
        let mut state = self.state();
        state.groups.insert(group);
        if let Some(shell) = &mut state.shell {
            shell.tell('+', group);
        }
    }

    /// A group has ended. Never blocks. To be called while its number can't be another's.
    pub(crate) fn forget(&self, group: Pid) {
        let mut state = self.state();
        if state.groups.remove(&group)
            && let Some(shell) = &mut state.shell
        {
            shell.tell('-', group);
        }
    }

    /// Ends the shell once no group is left. Blocks for as long as that takes.
    pub(crate) fn rest(&self) {
        let mut state = self.state();
        let shell = if state.groups.is_empty() { state.shell.take() } else { None };
        drop(state);
        if let Some(shell) = shell {
            shell.end();
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if let Some(shell) = self.state().shell.take() {
            // Without a thread the closure is dropped: the pipe ends, and the zombie is the system's.
            let _ = self.threads.start(move || shell.end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_this_process() {
        let gateway: GatewayId = "test".parse().unwrap();
        let value = Mark::new().unwrap().for_gateway(&gateway);
        let parts: Vec<_> = value.splitn(5, '/').collect();
        assert_eq!(parts.len(), 5, "{value}");
        assert_eq!((parts[0], parts[1]), ("test", std::process::id().to_string().as_str()));
        assert_eq!(parts[2], start_time(std::process::id()).unwrap().to_string());
        assert!(parts[3].starts_with("pid:["), "{value}");
    }

    #[test]
    fn the_start_of_a_process_tells_it_from_the_next_of_its_number() {
        let mut child = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(start_time(child.id()) >= start_time(std::process::id()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(start_time(child.id()), None);
    }
}
