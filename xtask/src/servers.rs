//! Throwaway database servers for the tests of the SQL stores.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Result;
use crate::workspace::{answers, describe, is_root, output};

/// Tell tests where the servers are. Where the environment has one already, that server is used and none is started.
const POSTGRES: &str = "FUNCTION_GATEWAY_TEST_POSTGRES_URL";
const MYSQL: &str = "FUNCTION_GATEWAY_TEST_MYSQL_URL";

/// A server that tests may kill: its URL, its data folder, and a command for `sh -c` that starts it again.
const DOOMED: &str = "FUNCTION_GATEWAY_TEST_DOOMED_POSTGRES_URL";
const DOOMED_DATA: &str = "FUNCTION_GATEWAY_TEST_DOOMED_POSTGRES_DATA";
const DOOMED_START: &str = "FUNCTION_GATEWAY_TEST_DOOMED_POSTGRES_START";

/// Where Debian has a folder for each version of PostgreSQL; its programs are not on the PATH.
const POSTGRES_VERSIONS: &str = "/usr/lib/postgresql";
const POSTGRES_PROGRAMS: [&str; 4] = ["initdb", "postgres", "pg_ctl", "pg_isready"];
const MARIADB_PROGRAMS: [&str; 3] = ["mariadb-install-db", "mariadbd", "mariadb-admin"];

/// No port is listened on, but the socket's name has one.
const POSTGRES_PORT: u16 = 5432;

/// How long a server may take to come up, and to go.
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(10);

/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// The servers, in a temporary folder. When this is dropped they are stopped, and the folder is deleted; also where the process
/// is ended by a signal.
pub(crate) struct Servers {
    // In this order they are dropped: the folder goes last.
    servers: Vec<Server>,
    _heir: Heir,
    _folder: TempDir,
}

struct Server {
    variables: Vec<(&'static str, String)>,
    _running: Running,
}

/// A server to start.
struct Start {
    /// Of its folder.
    name: &'static str,
    /// The variable by which the environment may name another instead.
    instead: Option<&'static str>,
    start: fn(&Path, &Heir) -> Result<Server>,
}

const STARTS: &[Start] = &[
    Start { name: "postgres", instead: Some(POSTGRES), start: start_postgres },
    Start { name: "mariadb", instead: Some(MYSQL), start: start_mariadb },
    Start { name: "doomed", instead: None, start: start_doomed },
];

/// PostgreSQL with as much memory as its manual recommends (20.4.1, `shared_buffers`).
const BENCHMARKED: &[Start] = &[Start { name: "postgres", instead: Some(POSTGRES), start: start_large_postgres }];

impl Servers {
    /// Starts those for tests that the environment does not name, and waits until they answer.
    pub(crate) fn start() -> Result<Self> {
        Self::start_those(STARTS)
    }

    /// Starts that for benchmarks, unless the environment names one.
    pub(crate) fn start_for_benchmarks() -> Result<Self> {
        Self::start_those(BENCHMARKED)
    }

    fn start_those(those: &[Start]) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
        if is_root() {
            // The servers are run by others, who have to get to their folders in it.
            output(Command::new("chmod").arg("755").arg(folder.path()))?;
        }
        let heir = Heir::of(folder.path())?;
        let servers = thread::scope(|scope| {
            let heir = &heir;
            let needed = those.iter().filter(|start| !start.instead.is_some_and(is_given));
            let starting: Vec<_> = needed
                .map(|start| {
                    let home = folder.path().join(start.name);
                    scope.spawn(move || (start.start)(&home, heir))
                })
                .collect();
            let ended = starting
                .into_iter()
                .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ended.collect::<Result<Vec<_>>>()
        })?;
        if !servers.is_empty() {
            println!("the servers run in {}", folder.path().display());
        }
        Ok(Self { servers, _heir: heir, _folder: folder })
    }

    /// What tells the tests of them.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.servers.iter().flat_map(|server| &server.variables).map(|(name, value)| (*name, value.as_str()))
    }
}

pub(crate) fn has_postgres() -> bool {
    postgres_programs().is_some()
}

/// Whether benchmarks get one: it is there, or the environment names another.
pub(crate) fn is_postgres_measured() -> bool {
    is_given(POSTGRES) || has_postgres()
}

/// Whether it is there, or not needed because the tests get another.
pub(crate) fn has_mariadb() -> bool {
    is_given(MYSQL) || MARIADB_PROGRAMS.into_iter().all(|program| on_path(program).is_some())
}

fn is_given(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

fn missing(name: &str) -> String {
    format!("{name} is missing; `cargo xtask test tools` installs it where it may")
}

/// A program on the PATH or among those of the administrator, which not everyone has on it.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders.find_map(|folder| Some(folder.join(program)).filter(|program| program.is_file()))
}

/// The folder that holds the programs of PostgreSQL.
fn postgres_programs() -> Option<PathBuf> {
    let on_path = || on_path("initdb")?.canonicalize().ok()?.parent().map(Path::to_owned);
    let as_told = || {
        // Not `output`, which shows its errors: where only the client is installed, it answers with one.
        let told = Command::new("pg_config").arg("--bindir").output().ok()?;
        Some(PathBuf::from(String::from_utf8(told.stdout).ok()?.trim()))
    };
    let complete = |folder: &PathBuf| has_postgres_programs(folder);
    newest_version(Path::new(POSTGRES_VERSIONS))
        .or_else(|| on_path().filter(complete))
        .or_else(|| as_told().filter(complete))
}

fn has_postgres_programs(folder: &Path) -> bool {
    POSTGRES_PROGRAMS.iter().all(|program| folder.join(program).is_file())
}

/// The programs of the newest version that has them all, not only those of the client.
fn newest_version(below: &Path) -> Option<PathBuf> {
    let folders = fs::read_dir(below).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let versions = folders.filter_map(|folder| Some((version(folder.file_name()?.to_str()?)?, folder.join("bin"))));
    versions.filter(|(_, programs)| has_postgres_programs(programs)).max().map(|(_, programs)| programs)
}

fn version(name: &str) -> Option<Vec<u32>> {
    name.split('.').map(|part| part.parse().ok()).collect()
}

/// Who runs a server: root must not.
#[derive(Debug, Clone, Copy)]
struct User(Option<&'static str>);

impl User {
    fn in_place_of_root(name: &'static str) -> Self {
        Self(is_root().then_some(name))
    }

    /// Makes a folder that is closed to everyone else, as the sockets in it are open to all.
    fn make_folder(self, folder: &Path) -> Result<()> {
        let mut command = Command::new("install");
        command.args(["-d", "-m", "700"]).args(self.0.map(|name| format!("--owner={name}"))).arg(folder);
        output(&mut command).map(drop)
    }

    fn command(self, program: &Path) -> Command {
        let Some(name) = self.0 else { return Command::new(program) };
        // Becomes the program instead of waiting for it, so that the child is the server itself.
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={name}")).arg(format!("--regid={name}")).arg("--clear-groups").arg(program);
        command
    }
}

/// A PostgreSQL server that is set up but not started.
struct Postgres<'a> {
    programs: PathBuf,
    user: User,
    home: &'a Path,
}

impl<'a> Postgres<'a> {
    fn set_up(home: &'a Path, settings: &str) -> Result<Self> {
        let programs = postgres_programs().ok_or_else(|| missing("PostgreSQL"))?;
        let new = Self { programs, user: User::in_place_of_root("postgres"), home };
        new.user.make_folder(home)?;
        let mut initdb = new.command("initdb");
        initdb.args(["--username=gateway", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]);
        // Nothing is lost yet if the machine crashes here. The server itself syncs, as tests expect of a database.
        logged(initdb.arg("--no-sync").arg(option("--pgdata", &new.data())), &home.join("set-up.log"))?;
        let path = new.data().join("postgresql.conf");
        let settings = postgres_settings(home) + settings;
        let append = |mut file: File| file.write_all(settings.as_bytes());
        OpenOptions::new().append(true).open(&path).and_then(append).map_err(at(&path))?;
        Ok(new)
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    fn log(&self) -> PathBuf {
        self.home.join("server.log")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.user.command(&self.programs.join(program));
        // That of the caller may be closed to the user.
        command.current_dir(self.home);
        command
    }

    fn is_ready(&self) -> bool {
        let mut command = Command::new(self.programs.join("pg_isready"));
        answers(command.arg(option("--host", self.home)).arg(format!("--port={POSTGRES_PORT}")))
    }

    /// A command for `sh -c` that starts the server as a process on its own, and returns when it answers.
    ///
    /// After a crash it tries again and again: the processes that served connections may hold the shared memory for a
    /// moment. The server that was killed counts as running until its parent has asked for its status. Since that may be
    /// nobody, as in a container whose first process is not made for it, its lock files are removed here.
    fn start_command(&self) -> String {
        let mut command = self.command("pg_ctl");
        command.args(["--silent", "--wait", "--timeout=30"]);
        command.arg(option("--pgdata", &self.data())).arg(option("--log", &self.log())).arg("start");
        let (home, start) = (quoted(&self.home.to_string_lossy()), quoted_command(&command));
        format!(
            "cd {home} || exit 1
end=$(($(date +%s) + 30))
until {start} >start-again.log 2>&1; do
    test \"$(date +%s)\" -lt $end || {{ tail -n 20 start-again.log server.log >&2; exit 1; }}
    grep -qs '^State:.Z' \"/proc/$(head -n 1 data/postmaster.pid 2>/dev/null)/status\" && rm -f data/postmaster.pid .s.PGSQL.*.lock
    sleep 0.2
done"
        )
    }
}

fn start_postgres(home: &Path, heir: &Heir) -> Result<Server> {
    start_postgres_with(home, heir, "")
}

fn start_large_postgres(home: &Path, heir: &Heir) -> Result<Server> {
    let settings = memory_kib().map(|memory| format!("shared_buffers = {}kB\n", memory / 4));
    start_postgres_with(home, heir, &settings.unwrap_or_default())
}

/// The memory of this machine, where it tells.
fn memory_kib() -> Option<u64> {
    let told = fs::read_to_string("/proc/meminfo").ok()?;
    let total = told.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix(" kB")?.parse().ok()
}

fn start_postgres_with(home: &Path, heir: &Heir, settings: &str) -> Result<Server> {
    let postgres = Postgres::set_up(home, settings)?;
    let mut command = postgres.command("postgres");
    command.arg("-D").arg(postgres.data());
    let running = start_child(&mut command, "INT", &postgres.log(), heir, || postgres.is_ready())?;
    Ok(Server { variables: vec![(POSTGRES, postgres_url(home))], _running: running })
}

fn start_doomed(home: &Path, heir: &Heir) -> Result<Server> {
    let postgres = Postgres::set_up(home, "")?;
    let start = postgres.start_command();
    let mut stop = postgres.command("pg_ctl");
    stop.args(["--mode=immediate", "--wait", &format!("--timeout={}", STOP.as_secs())]);
    stop.arg(option("--pgdata", &postgres.data())).arg("stop");
    heir.tell(&quoted_command(&stop));
    logged(Command::new("sh").args(["-c", &start]), &home.join("start.log"))?;
    let data = postgres.data().to_string_lossy().into_owned();
    let variables = vec![(DOOMED, postgres_url(home)), (DOOMED_DATA, data), (DOOMED_START, start)];
    Ok(Server { variables, _running: Running::Apart { stop } })
}

/// What is added to the settings of a new server.
fn postgres_settings(home: &Path) -> String {
    let folder = home.to_string_lossy().replace('\'', "''");
    // The port too, as the environment may name another.
    format!(
        "listen_addresses = ''\nunix_socket_directories = '{folder}'\nport = {POSTGRES_PORT}\nmax_connections = 300\n"
    )
}

fn postgres_url(home: &Path) -> String {
    format!("postgres://gateway@localhost:{POSTGRES_PORT}/postgres?host={}", percent_encoded(home))
}

fn start_mariadb(home: &Path, heir: &Heir) -> Result<Server> {
    let user = User::in_place_of_root("mysql");
    user.make_folder(home)?;
    let programs = MARIADB_PROGRAMS.map(|program| on_path(program).ok_or_else(|| missing("MariaDB")));
    let [install, server, admin] = programs;
    let (install, server, admin) = (install?, server?, admin?);
    let (data, socket, rights) = (home.join("data"), home.join("mariadb.sock"), home.join("rights.sql"));

    let mut command = user.command(&install);
    // What its settings say is for another server. This argument has to be the first.
    command.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    logged(command.arg(option("--datadir", &data)).current_dir(home), &home.join("set-up.log"))?;
    fs::write(&rights, MARIADB_RIGHTS).map_err(at(&rights))?;

    let mut command = user.command(&server);
    command.args(["--no-defaults", "--skip-networking", "--max-connections=400"]).arg(option("--datadir", &data));
    command.arg(option("--socket", &socket)).arg(option("--pid-file", &home.join("mariadb.pid")));
    command.arg(option("--init-file", &rights)).current_dir(home);
    let is_ready = || {
        let mut command = Command::new(&admin);
        // As the user of the tests: then the rights are there too.
        command.args(["--no-defaults", "--user=gateway", "--password=gateway", "--connect-timeout=3"]);
        answers(command.arg(option("--socket", &socket)).arg("status"))
    };
    let running = start_child(&mut command, "TERM", &home.join("server.log"), heir, is_ready)?;
    Ok(Server { variables: vec![(MYSQL, mysql_url(&socket))], _running: running })
}

/// Run by the server before it accepts connections, a statement in each line.
const MARIADB_RIGHTS: &str = "\
CREATE USER gateway@localhost IDENTIFIED BY 'gateway';
GRANT ALL PRIVILEGES ON *.* TO gateway@localhost WITH GRANT OPTION;
";

fn mysql_url(socket: &Path) -> String {
    format!("mysql://gateway:gateway@localhost/mysql?socket={}", percent_encoded(socket))
}

/// A server that runs, and is stopped when this is dropped.
#[derive(Debug)]
enum Running {
    /// Stopped by a signal.
    Child { child: Child, signal: &'static str },
    /// Started by a program that has ended, and stopped by another. It may be gone by then.
    Apart { stop: Command },
}

impl Drop for Running {
    fn drop(&mut self) {
        match self {
            Self::Child { child, signal } => stop_child(child, signal),
            Self::Apart { stop } => _ = answers(stop),
        }
    }
}

/// Stops the servers and deletes their folder where this process ends without having done so: a shell in a process group of its
/// own, which Ctrl-C does not reach, and which waits for the end of its input.
#[derive(Debug)]
struct Heir(Mutex<Child>);

/// Reads commands, one in each line, and carries them out at the end of its input, unless a line says that there is nothing to be
/// done.
const HEIR: &str = "trap '' HUP INT TERM
commands=
while IFS= read -r line; do
    test \"$line\" = done && exit
    commands=\"$commands$line
\"
done
cd \"$1\" && eval \"$commands\"
cd / && rm -rf \"$1\"";

impl Heir {
    fn of(folder: &Path) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", HEIR, "heir"]).arg(folder).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| format!("a shell that stops the servers: {error}"))?;
        Ok(Self(Mutex::new(child)))
    }

    /// Adds a command, of one line.
    fn tell(&self, command: &str) {
        let mut child = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(input) = &mut child.stdin {
            // Where it is gone there is nobody to be told.
            _ = input.write_all(format!("{command}\n").as_bytes());
        }
    }

    /// Adds what stops a child of this process, by force where it takes too long.
    fn tell_child(&self, id: u32, signal: &str) {
        let looks = STOP.as_millis() / LOOK.as_millis();
        self.tell(&format!(
            "kill -s {signal} {id}; n={looks}; while kill -0 {id} && [ $n -gt 0 ]; do n=$((n - 1)); sleep 0.05; done; kill -s KILL {id}"
        ));
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        self.tell("done");
        _ = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).wait();
    }
}

fn stop_child(child: &mut Child, signal: &str) {
    // By the shell, as there may be no program `kill`.
    answers(Command::new("sh").args(["-c", &format!("kill -s {signal} {}", child.id())]));
    let end = Instant::now() + STOP;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
        thread::sleep(LOOK);
    }
    // Neither does anything to a child that has ended.
    _ = child.kill();
    _ = child.wait();
}

/// Starts a server and waits until it is ready; what it says goes to its log.
fn start_child(
    command: &mut Command,
    signal: &'static str,
    log: &Path,
    heir: &Heir,
    is_ready: impl Fn() -> bool,
) -> Result<Running> {
    let description = describe(command);
    let child = logging_to(command, log)?.spawn().map_err(|error| format!("`{description}`: {error}"))?;
    heir.tell_child(child.id(), signal);
    let mut running = Running::Child { child, signal };
    let end = Instant::now() + START;
    while !is_ready() {
        if let Running::Child { child, .. } = &mut running
            && let Ok(Some(status)) = child.try_wait()
        {
            return Err(format!("`{description}` ended with {status}:\n{}", text(log)));
        }
        if Instant::now() >= end {
            return Err(format!("`{description}` is not ready after {} s:\n{}", START.as_secs(), text(log)));
        }
        thread::sleep(LOOK);
    }
    Ok(running)
}

/// Runs a command; what it says is shown only where it fails.
fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let description = describe(command);
    let status = logging_to(command, log)?.status().map_err(|error| format!("`{description}`: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{description}` ended with {status}:\n{}", text(log))) }
}

fn logging_to<'a>(command: &'a mut Command, log: &Path) -> Result<&'a mut Command> {
    let file = File::create(log).map_err(at(log))?;
    let errors = file.try_clone().map_err(at(log))?;
    Ok(command.stdin(Stdio::null()).stdout(file).stderr(errors))
}

fn text(log: &Path) -> String {
    fs::read(log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
}

fn option(name: &str, value: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(name);
    option.push("=");
    option.push(value);
    option
}

/// A path as a value in a URL's query.
fn percent_encoded(path: &Path) -> String {
    let mut encoded = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
                encoded.push(char::from(*byte))
            }
            // Writing to a string can't fail.
            _ => _ = write!(encoded, "%{byte:02X}"),
        }
    }
    encoded
}

/// A command as the shell reads it.
fn quoted_command(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> String + use<'_> {
    move |error| format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(files: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for path in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    /// One with nothing to do.
    fn heir() -> Heir {
        Heir::of(Path::new("/nowhere")).unwrap()
    }

    #[test]
    fn the_newest_version_with_a_server_is_taken() {
        let all = |version: &str| POSTGRES_PROGRAMS.map(|program| format!("{version}/bin/{program}"));
        let mut files = [all("9.6"), all("10"), all("9.10"), all("old")].concat();
        files.push("17/bin/pg_isready".to_owned());
        let folder = folder_with(&files.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(newest_version(folder.path()), Some(folder.path().join("10/bin")));
        assert_eq!(newest_version(&folder.path().join("17")), None);
        assert_eq!(newest_version(&folder.path().join("none")), None);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version("9.6") < version("9.10"));
        assert!(version("9.10") < version("15"));
        assert_eq!(version("main"), None);
    }

    #[test]
    fn a_path_in_a_url_is_percent_encoded() {
        assert_eq!(percent_encoded(Path::new("/tmp/.tmpAz09_-~/é &?%+")), "/tmp/.tmpAz09_-~/%C3%A9%20%26%3F%25%2B");
    }

    #[test]
    fn a_url_names_the_socket() {
        assert_eq!(
            postgres_url(Path::new("/tmp/a b/postgres")),
            "postgres://gateway@localhost:5432/postgres?host=/tmp/a%20b/postgres"
        );
        assert_eq!(
            mysql_url(Path::new("/tmp/a b/mariadb.sock")),
            "mysql://gateway:gateway@localhost/mysql?socket=/tmp/a%20b/mariadb.sock"
        );
    }

    #[test]
    fn a_quote_in_a_setting_is_doubled() {
        assert!(postgres_settings(Path::new("/tmp/it's")).contains("unix_socket_directories = '/tmp/it''s'\n"));
    }

    #[test]
    fn the_shell_reads_a_quoted_command_as_it_was() {
        let mut command = Command::new("printf");
        command.args(["%s|", "it's", "$HOME", "a  b", ""]);
        assert_eq!(output(&mut sh(&quoted_command(&command))).unwrap(), "it's|$HOME|a  b||");
    }

    #[test]
    fn a_server_is_stopped_when_it_is_dropped() {
        let log = tempfile::NamedTempFile::new().unwrap();
        // Not INT: a shell can't trap what its parent ignores, and who runs this in the background may ignore that.
        let script = "trap 'echo stopped; exit' TERM; echo $$; while :; do sleep 0.01; done";
        let is_ready = || text(log.path()).ends_with('\n');
        let running = start_child(&mut sh(script), "TERM", log.path(), &heir(), is_ready).unwrap();
        let id = text(log.path());
        assert!(answers(&mut sh(&format!("kill -0 {id}"))));
        drop(running);
        assert!(!answers(&mut sh(&format!("kill -0 {id}"))));
        assert_eq!(text(log.path()), format!("{id}stopped\n"));
    }

    #[test]
    fn an_heir_stops_what_is_left_where_nobody_tells_it_not_to() {
        for is_told in [true, false] {
            let (log, folder) = (tempfile::NamedTempFile::new().unwrap(), tempfile::tempdir().unwrap());
            let mut heir = Heir::of(folder.path()).unwrap();
            heir.tell("touch \"it's told\"");
            let script = "trap 'echo stopped; exit' TERM; echo ready; while :; do sleep 0.01; done";
            let is_ready = || text(log.path()).ends_with('\n');
            let mut running = start_child(&mut sh(script), "TERM", log.path(), &heir, is_ready).unwrap();
            if !is_told {
                // As where this process is killed, and the server has another parent that hears of its end.
                let shell = heir.0.get_mut().unwrap();
                drop(shell.stdin.take());
                if let Running::Child { child, .. } = &mut running {
                    child.wait().unwrap();
                }
                shell.wait().unwrap();
            }
            drop(heir);
            assert_eq!(folder.path().exists(), is_told);
            assert_eq!(text(log.path()).ends_with("stopped\n"), !is_told);
            drop(running);
        }
    }

    #[test]
    fn a_server_that_does_not_come_up_is_told_with_its_log() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let problem =
            start_child(&mut sh("echo no space >&2; exit 3"), "INT", log.path(), &heir(), || false).unwrap_err();
        assert!(problem.ends_with("ended with exit status: 3:\nno space\n"), "{problem}");
    }

    #[test]
    fn a_command_that_fails_is_told_with_its_log() {
        let log = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(logged(&mut sh("echo fine"), log.path()), Ok(()));
        let problem = logged(&mut sh("echo no space; exit 3"), log.path()).unwrap_err();
        assert!(problem.ends_with("ended with exit status: 3:\nno space\n"), "{problem}");
    }
}
