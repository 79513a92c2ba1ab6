//! Starts the program, and tells what it said.

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything takes: reached only where a test has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program, in an environment of the test's own.
pub(crate) fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_local-gateway"));
    command.args(args).env_clear();
    // Python may be where only these say.
    for name in ["PATH", "HOME"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.current_dir(env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::null());
    command
}

/// What a run of the program came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ran {
    pub(crate) fn of(command: &mut Command) -> Self {
        command.output().unwrap().into()
    }

    #[track_caller]
    pub(crate) fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// The columns of the first line that starts with this.
    #[track_caller]
    pub(crate) fn row(&self, start: &str) -> Vec<&str> {
        let row = self.out.lines().find(|line| line.starts_with(start));
        row.unwrap_or_else(|| panic!("{self:#?}")).split("  ").map(str::trim).filter(|part| !part.is_empty()).collect()
    }
}

/// Lines as a process writes them.
pub(crate) struct Lines {
    seen: String,
    lines: Receiver<String>,
}

impl Lines {
    fn of(output: impl Read + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = String::new();
            while output.read_line(&mut line).is_ok_and(|len| len > 0) {
                if sender.send(std::mem::take(&mut line)).is_err() {
                    return;
                }
            }
        });
        Self { seen: String::new(), lines }
    }

    /// Waits for a line with this in it, from the first one on.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.seen.lines().find(|line| line.contains(part)) {
                return line.to_owned();
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push_str(&line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no line has {part:?} in it:\n{}", self.seen)
                }
            }
        }
    }

    /// Everything, once the process has ended.
    fn all(mut self) -> String {
        self.seen.extend(self.lines.iter());
        self.seen
    }
}

/// A gateway that runs.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) url: String,
    pub(crate) out: Lines,
    pub(crate) err: Lines,
}

impl Gateway {
    /// Starts one with a database in a folder, on a port of its own.
    #[track_caller]
    pub(crate) fn start(data: &Path, args: &[&str]) -> Self {
        let mut command = program(args);
        command.args(["--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()]);
        Self::run(&mut command)
    }

    /// Starts one, and waits until it says that it is ready.
    #[track_caller]
    pub(crate) fn run(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut out, err) = (Lines::of(child.stdout.take().unwrap()), Lines::of(child.stderr.take().unwrap()));
        let address = out.wait_for("  Address ");
        let url = address.split_whitespace().last().unwrap().to_owned();
        out.wait_for("Ctrl-C lets calls end");
        Self { child, url, out, err }
    }

    /// A command that talks to this one.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = program(args);
        command.env("FUNCTION_GATEWAY_URL", &self.url);
        command
    }

    pub(crate) fn client(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// Runs a command with something on its standard input.
    pub(crate) fn client_with_input(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut child =
            self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap().into()
    }

    /// Asks again until the answer is as wanted.
    #[track_caller]
    pub(crate) fn until(&self, args: &[&str], wanted: impl Fn(&Ran) -> bool) -> Ran {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ran = self.client(args);
            if wanted(&ran) {
                return ran;
            }
            assert!(Instant::now() < deadline, "{ran:#?}");
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the process has ended by itself.
    #[track_caller]
    pub(crate) fn ended(mut self) -> Ran {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "the gateway does not end"),
            }
            std::thread::yield_now();
        };
        let take = |lines: &mut Lines| std::mem::replace(lines, Lines::of(std::io::empty())).all();
        Ran { code: status.code(), out: take(&mut self.out), err: take(&mut self.err) }
    }

    /// Stops it as Ctrl-C does.
    #[track_caller]
    pub(crate) fn stop(self) -> Ran {
        self.signal(Signal::INT);
        self.ended().ends_with(0)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // One that has ended can't be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a line of `curl` as a shell does. Where there is no curl, another client sends the same request.
pub(crate) fn curl(line: &str) -> Ran {
    if Command::new("curl").arg("--version").output().is_ok() {
        return Ran::of(Command::new("sh").args(["-euc", line]));
    }
    let data = line.contains("-d ").then(|| line.split('\'').nth(1).unwrap().to_owned());
    let url = line.split([' ', '\'']).find(|word| word.starts_with("http://")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::new();
        let request = match data {
            Some(data) => client.post(url).body(data),
            None => client.get(url),
        };
        let out = request.send().await.unwrap().text().await.unwrap();
        Ran { code: Some(0), out, err: String::new() }
    })
}

/// A folder of the test's own.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A file in it.
pub(crate) fn file(folder: &TempDir, name: &str, text: &str) -> String {
    let path: PathBuf = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The specification of a function that is a line of shell, in YAML.
pub(crate) fn shell(name: &str, script: &str) -> String {
    let args = serde_json::json!(["-c", script]);
    format!("name: {name}\nspec:\n  driver: local\n  run:\n    process:\n      command: sh\n      args: {args}\n")
}
