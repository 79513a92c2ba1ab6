//! Starts a process in a group of its own, and never lets go of it before it is killed and reaped.

use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use function_gateway_core::{Delivery, Error, ErrorKind, GatewayId, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error;
use crate::limits::{Confined, Limits};
use crate::reaper::{self, Reaper};

/// How long the last owner of a killed process waits for its end, where no runtime is left that could.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Why the driver ended a process by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Its deployment was removed.
    Removed,
    /// The driver was shut down.
    ShutDown,
}

impl Stop {
    pub(crate) fn error(self) -> Error {
        let message = match self {
            Self::Removed => "the function was removed",
            Self::ShutDown => "the gateway stopped",
        };
        Error::new(ErrorKind::Cancelled, message).with_delivery(Delivery::Executed)
    }
}

/// What a process holds from before its start until it is reaped.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Given back first, so that who has waited for the end finds the place free.
    pub(crate) _permit: Option<OwnedSemaphorePermit>,
    /// Of the driver and of the deployment.
    pub(crate) _tracked: [TaskTrackerToken; 2],
}

/// A process that was started, with its ends of the three pipes.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) process: Process,
    /// `None` where everything that goes in is in the pipe already.
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
}

/// What goes into a process.
#[derive(Debug)]
pub(crate) struct Input {
    reader: PipeReader,
    writer: Option<PipeWriter>,
}

impl Input {
    /// Puts as much of `bytes` into a new pipe as it takes at once, and takes that off `bytes`. Without `more` to come
    /// the pipe is closed once all is in it. So a small payload waits for the process, not the process for it.
    pub(crate) fn new(bytes: &mut Bytes, more: bool) -> Result<Self> {
        Self::fill(bytes, more).map_err(|error| error::of_io(error, Delivery::NotSent))
    }

    fn fill(bytes: &mut Bytes, more: bool) -> io::Result<Self> {
        let (reader, mut writer) = io::pipe()?;
        rustix::io::ioctl_fionbio(&writer, true)?;
        while !bytes.is_empty() {
            match writer.write(bytes) {
                Ok(written) => bytes.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let writer = (more || !bytes.is_empty()).then_some(writer);
        Ok(Self { reader, writer })
    }
}

/// Starts a process that leads a new group, and enters it in `processes`. Its pipes belong to `runtime`.
///
/// `std` starts it by `posix_spawn`, which does not copy the host's page tables, as long as the program is an absolute
/// path and the command has no `pre_exec`, user or group. Still the calling thread waits until the program is loaded,
/// from a slow disk perhaps, so it must not be one of the runtime's.
pub(crate) fn start(
    mut command: Command,
    input: Input,
    processes: &Arc<Processes>,
    runtime: &Handle,
    hold: Hold,
) -> Result<Started> {
    processes.reaper.ensure()?;
    let Input { reader, writer } = input;
    command.env(reaper::VARIABLE, &processes.mark);
    command.process_group(0).stdin(reader).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Err(error::of_start(error, &command)),
    };
    // With it goes the reading end of the input, which must be the process's alone.
    drop(command);
    let mut child = Unwatched(Some(child));
    child.watch(writer, processes, runtime, hold)
}

/// A process that nothing watches yet: dropping it kills and reaps it.
struct Unwatched(Option<Child>);

impl Unwatched {
    fn watch(
        &mut self,
        stdin: Option<PipeWriter>,
        processes: &Arc<Processes>,
        runtime: &Handle,
        hold: Hold,
    ) -> Result<Started> {
        let lost = |error| error::of_io(error, Delivery::Unknown);
        let missing = || lost(io::Error::other("the process has no pipes"));
        let child = self.0.as_mut().ok_or_else(missing)?;
        let pid = Pid::from_child(child);
        let stdout = OwnedFd::from(child.stdout.take().ok_or_else(missing)?);
        let stderr = OwnedFd::from(child.stderr.take().ok_or_else(missing)?);

        let entered = runtime.enter();
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| lost(errno.into()))?;
        #[expect(deprecated, reason = "its replacement is unsafe for the sake of types that may lose their descriptor")]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE).map_err(lost)?;
        let stdin = stdin.map(|writer| pipe::Sender::from_owned_fd(writer.into())).transpose().map_err(lost)?;
        let stdout = pipe::Receiver::from_owned_fd(stdout).map_err(lost)?;
        let stderr = pipe::Receiver::from_owned_fd(stderr).map_err(lost)?;
        drop(entered);

        let confined = processes.limits.apply(pid).map_err(|error| {
            let message = "the function's process could not be held to its limits";
            Error::new(ErrorKind::Unavailable, message).with_delivery(Delivery::Unknown).with_source(error)
        })?;
        // Watched from here on, and reaped by its number.
        processes.reaper.register(pid);
        self.0 = None;
        let state = Mutex::new(State { end: None, hold: Some(hold), confined, out_of_memory: false });
        let group = processes.admit(|id| Group {
            id,
            pid,
            pidfd,
            state,
            stop: OnceLock::new(),
            processes: Arc::clone(processes),
        });
        Ok(Started { process: Process { group, runtime: runtime.clone() }, stdin, stdout, stderr })
    }
}

impl Drop for Unwatched {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            send_kill(Pid::from_child(child));
            // It was just killed, so this wait is as short as its end. Nothing but the host's own code can have
            // reaped it before, and then there is nothing to wait for.
            let _ = child.wait();
        }
    }
}

/// Owns a process: dropping it kills the whole group at once, and leaves it to the runtime to reap.
#[derive(Debug)]
pub(crate) struct Process {
    group: Arc<Group>,
    runtime: Handle,
}

impl Process {
    pub(crate) fn group(&self) -> &Arc<Group> {
        &self.group
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        Group::end(&self.group, &self.runtime);
    }
}

/// A process and the group that it leads.
///
/// Its number, and so the group's, stays its own until it is reaped. Therefore whatever signals the group holds the
/// lock, and finds the process not reaped.
#[derive(Debug)]
pub(crate) struct Group {
    id: u64,
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    state: Mutex<State>,
    stop: OnceLock<Stop>,
    processes: Arc<Processes>,
}

#[derive(Debug)]
struct State {
    /// How it ended, once it is reaped. An error where somebody else has reaped it: its number may be another's.
    end: Option<Result<ExitStatus, Errno>>,
    hold: Option<Hold>,
    /// The group that holds it to its limits.
    confined: Option<Confined>,
    /// Whether the kernel has killed it, or what it had started, for memory.
    out_of_memory: bool,
}

impl Group {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process, whose number is the group's too.
    pub(crate) fn leader(&self) -> Pid {
        self.pid
    }

    /// Asks the group to end.
    pub(crate) fn terminate(&self) {
        let state = self.state();
        if state.end.is_none() {
            log_failure(self.pid, rustix::process::kill_process_group(self.pid, Signal::TERM));
        }
    }

    /// Kills the group, and the process itself should it have left its group. Says whether it is still to be reaped.
    pub(crate) fn kill(&self) -> bool {
        let state = self.state();
        let alive = state.end.is_none();
        if alive {
            send_kill(self.pid);
            if let Some(confined) = &state.confined {
                confined.kill();
            }
        }
        alive
    }

    /// Kills the group, and leaves it to `runtime` to reap, since its call may never be polled again.
    fn end(this: &Arc<Self>, runtime: &Handle) {
        if this.kill() {
            let group = Arc::clone(this);
            // Where the runtime is gone the task is dropped, and with it the group, which then waits by itself.
            drop(runtime.spawn(async move { group.ended().await }));
        }
    }

    /// Ends the group for a reason, which its call then answers with. The first reason stands.
    fn stop(this: &Arc<Self>, reason: Stop, runtime: &Handle) {
        this.stop.get_or_init(|| reason);
        Self::end(this, runtime);
    }

    /// Why the driver ended it by itself, if it did.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        self.stop.get().copied()
    }

    /// The bytes of memory that it may have, where it was killed for needing more.
    pub(crate) fn out_of_memory(&self) -> Option<u64> {
        self.processes.limits.memory_bytes().filter(|_| self.state().out_of_memory)
    }

    /// Waits until the process has ended, kills what is left of its group, and reaps it. Any number of callers get the
    /// same status. Cancel-safe.
    pub(crate) async fn ended(&self) -> io::Result<ExitStatus> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            if let Some(status) = self.reap()? {
                return Ok(status);
            }
            ready.clear_ready();
        }
    }

    /// The status, if the process has ended.
    fn reap(&self) -> io::Result<Option<ExitStatus>> {
        let mut state = self.state();
        if state.end.is_none() {
            state.end = self.wait().transpose();
            if state.end.is_some() {
                self.processes.reaper.forget(self.pid);
                self.processes.forget(self.id);
                let was_killed =
                    matches!(state.end, Some(Ok(status)) if status.signal() == Some(Signal::KILL.as_raw()));
                let confined = state.confined.take();
                state.out_of_memory = confined.is_some_and(|confined| was_killed && confined.was_out_of_memory());
                state.hold = None;
            }
        }
        Ok(state.end.transpose()?)
    }

    /// Reaps the process if it has ended, after killing what is left of its group. Called under the lock.
    fn wait(&self) -> Result<Option<ExitStatus>, Errno> {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if rustix::process::waitid(WaitId::Pid(self.pid), look)?.is_none() {
            return Ok(None);
        }
        log_failure(self.pid, rustix::process::kill_process_group(self.pid, Signal::KILL));
        // While the number is still its own.
        self.processes.reaper.forget(self.pid);
        let reaped = rustix::process::waitpid(Some(self.pid), WaitOptions::NOHANG)?;
        Ok(reaped.map(|(_, status)| ExitStatus::from_raw(status.as_raw())))
    }
}

impl Drop for Group {
    /// Comes too late for nothing but a runtime that is gone: everybody else has waited for the end.
    fn drop(&mut self) {
        if self.kill() {
            let timeout = Timespec { tv_sec: LAST_WAIT.as_secs().cast_signed(), tv_nsec: 0 };
            let mut ended = [PollFd::from_borrowed_fd(self.pidfd.get_ref().as_fd(), PollFlags::IN)];
            let waited = rustix::event::poll(&mut ended, Some(&timeout));
            if !matches!((waited, self.reap()), (Ok(_), Ok(Some(_)))) {
                self.processes.forget(self.id);
                tracing::warn!(pid = self.pid.as_raw_pid(), "a killed process did not end");
            }
        }
    }
}

/// Kills a group and its leader, which must not have been reaped.
fn send_kill(leader: Pid) {
    log_failure(leader, rustix::process::kill_process_group(leader, Signal::KILL));
    // A leader can move to another group of its session.
    log_failure(leader, rustix::process::kill_process(leader, Signal::KILL));
}

fn log_failure(leader: Pid, killed: Result<(), Errno>) {
    match killed {
        Ok(()) | Err(Errno::SRCH) => {}
        // A process that changed its user is beyond the host's reach.
        Err(errno) => tracing::warn!(pid = leader.as_raw_pid(), %errno, "a process could not be killed"),
    }
}

/// The processes of one deployment, so that all can be ended.
#[derive(Debug)]
pub(crate) struct Processes {
    runtime: Handle,
    reaper: Arc<Reaper>,
    /// What marks each of them.
    mark: String,
    limits: Limits,
    table: Mutex<Table>,
    /// From before the start of each process until it is reaped.
    running: TaskTracker,
}

#[derive(Debug, Default)]
struct Table {
    stopped: Option<Stop>,
    next_id: u64,
    groups: HashMap<u64, Weak<Group>>,
}

impl Processes {
    pub(crate) fn new(runtime: Handle, reaper: Arc<Reaper>, gateway: &GatewayId, limits: Limits) -> Self {
        let running = TaskTracker::new();
        running.close();
        let mark = reaper.mark().for_gateway(gateway);
        Self { runtime, reaper, mark, limits, table: Mutex::default(), running }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a process that is about to be started: who waits for the end waits for it too.
    pub(crate) fn announce(&self) -> TaskTrackerToken {
        self.running.token()
    }

    /// Enters a process. One that comes after the stop is ended at once.
    fn admit(&self, make: impl FnOnce(u64) -> Group) -> Arc<Group> {
        let mut table = self.table();
        let id = table.next_id;
        table.next_id += 1;
        let group = Arc::new(make(id));
        table.groups.insert(id, Arc::downgrade(&group));
        let stopped = table.stopped;
        drop(table);
        if let Some(reason) = stopped {
            Group::stop(&group, reason, &self.runtime);
        }
        group
    }

    fn forget(&self, id: u64) {
        self.table().groups.remove(&id);
    }

    /// Why no further process is to run, if so.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        self.table().stopped
    }

    /// Kills every process, and each that was announced before.
    pub(crate) fn stop(&self, reason: Stop) {
        let mut table = self.table();
        table.stopped.get_or_insert(reason);
        let groups: Vec<_> = table.groups.values().filter_map(Weak::upgrade).collect();
        drop(table);
        for group in groups {
            Group::stop(&group, reason, &self.runtime);
        }
    }

    /// Waits until no process runs, nor is about to. Cancel-safe.
    pub(crate) async fn all_ended(&self) {
        self.running.wait().await;
    }
}
