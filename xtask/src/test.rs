//! The one test command.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::servers::{self, Servers};
use crate::workspace::{Package, Workspace, answers, is_root, output, run};
use crate::{Result, architecture, cgroup, docs, instructions, licences, readme, runtimes, tidy};

pub(crate) const SUMMARY: &str = "Run every check and test; the steps, in order, or only those that are named";
pub(crate) const HELP: &str = "\
Steps, cheap ones first; the first that fails ends the run:

  tools          the toolchain, its components and the programs that tests use; installs what it may
  format         cargo fmt --check
  tidy           leftovers, links, manifests, scripts
  architecture   the invariants between crates
  licences       the licences of all dependencies
  lint           cargo clippy, all targets, all features, warnings are errors
  features       each published crate alone, without features and with each of them
  runtimes       the runtimes of others that functions of the tests need, from their registries
  test           all tests, doc tests included, and those that need the runtimes or a database server
  cgroup         local processes that the kernel's cgroups limit, in a virtual machine
  api-docs       cargo doc, warnings are errors
  docs           the generated sections of documents are up to date
  examples       every example runs and ends well
  readme         what README.md says works
  benches        the benchmarks build
  instructions   a call takes no more instructions than are committed

The step `test` starts PostgreSQL and MariaDB in a temporary folder, and stops them when it ends. Two variables name
servers to use instead; their user must have the right to create databases:

FUNCTION_GATEWAY_TEST_POSTGRES_URL    such as postgres://user:password@localhost/postgres
FUNCTION_GATEWAY_TEST_MYSQL_URL       such as mysql://user:password@localhost/mysql

The step `cgroup` boots Debian's kernel in QEMU, on x86-64. FUNCTION_GATEWAY_TEST_CGROUP names a folder of the cgroup tree
to use instead: of version 2, delegated with the controllers memory and cpu, enabled for what is below it and with no
process in it, such as one that `systemd-run --property=Delegate=yes` has made.";

/// Set for the tests: what can't run here fails instead of being skipped.
const TEST_ENVIRONMENT: &[(&str, &str)] = &[("FUNCTION_GATEWAY_CONFORMANCE_STRICT", "1")];

/// Parts of the names of ignored tests that run here: those that need the runtimes, a server, namespaces of the kernel, or
/// another user.
const NEEDS: [&str; 4] = ["real_runtime", "on_server", "in_pod", "as_nobody"];

/// Something that tests and sample functions use.
struct Tool {
    name: &'static str,
    is_there: fn() -> bool,
    /// The Debian package that brings it.
    package: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool { name: "python3", is_there: || ends_well("python3", &["--version"]), package: "python3-minimal" },
    // Debian has the part that fills a new environment in a package of its own.
    Tool {
        name: "python3 -m venv",
        is_there: || ends_well("python3", &["-c", "import ensurepip, venv"]),
        package: "python3-venv",
    },
    Tool { name: "node", is_there: || ends_well("node", &["--version"]), package: "nodejs" },
    Tool { name: "npm", is_there: || ends_well("npm", &["--version"]), package: "npm" },
    Tool { name: "curl", is_there: || ends_well("curl", &["--version"]), package: "curl" },
    Tool { name: "valgrind", is_there: || ends_well("valgrind", &["--version"]), package: "valgrind" },
    Tool { name: "unshare", is_there: || ends_well("unshare", &["--version"]), package: "util-linux" },
    Tool { name: "ip", is_there: || ends_well("ip", &["-Version"]), package: "iproute2" },
    Tool { name: "QEMU", is_there: cgroup::has_machine, package: "qemu-system-x86" },
    Tool { name: "busybox", is_there: cgroup::has_tools, package: "busybox-static" },
    Tool { name: "PostgreSQL", is_there: servers::has_postgres, package: "postgresql" },
    Tool { name: "MariaDB", is_there: servers::has_mariadb, package: "mariadb-server" },
];

struct Step {
    name: &'static str,
    run: fn(&Workspace) -> Result<()>,
}

const STEPS: &[Step] = &[
    Step { name: "tools", run: tools },
    Step { name: "format", run: |workspace| run(&mut workspace.cargo(["fmt", "--all", "--check"])) },
    Step { name: "tidy", run: tidy::check },
    Step { name: "architecture", run: architecture::check },
    Step { name: "licences", run: licences::check },
    Step { name: "lint", run: lint },
    Step { name: "features", run: features },
    Step { name: "runtimes", run: runtimes::command },
    Step { name: "test", run: test },
    Step { name: "cgroup", run: cgroup::check },
    Step { name: "api-docs", run: api_docs },
    Step { name: "docs", run: |workspace| docs::update(workspace, true) },
    Step { name: "examples", run: examples },
    Step { name: "readme", run: readme::check },
    Step { name: "benches", run: benches },
    Step { name: "instructions", run: instructions::check },
];

pub(crate) fn command(workspace: &Workspace, args: &[String]) -> Result<()> {
    let steps = chosen(args)?;
    let mut done = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        println!("\n==> {} ({} of {})", step.name, index + 1, steps.len());
        let start = Instant::now();
        let result = (step.run)(workspace);
        done.push((step.name, result.is_ok(), start.elapsed()));
        if let Err(problem) = result {
            println!("\n{}", table(&done));
            return Err(format!("the step `{}` failed: {problem}", step.name));
        }
    }
    println!("\n{}", table(&done));
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Step>> {
    if let Some(unknown) = names.iter().find(|name| !STEPS.iter().any(|step| step.name == **name)) {
        let known: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        return Err(format!("there is no step {unknown:?}; the steps are {}", known.join(", ")));
    }
    Ok(STEPS.iter().filter(|step| names.is_empty() || names.iter().any(|name| name == step.name)).collect())
}

fn table(done: &[(&str, bool, Duration)]) -> String {
    let mut text = String::new();
    for (name, passed, time) in done {
        text.push_str(&format!(
            "{name:<14}{:<8}{:>7.1} s\n",
            if *passed { "passed" } else { "FAILED" },
            time.as_secs_f64()
        ));
    }
    let total: Duration = done.iter().map(|(_, _, time)| *time).sum();
    text + &format!("{:<22}{:>7.1} s", "total", total.as_secs_f64())
}

fn tools(workspace: &Workspace) -> Result<()> {
    let stated = workspace.members().find_map(|package| package.rust_version.as_deref()).unwrap_or_default();
    let running = output(Command::new("rustc").arg("--version").current_dir(&workspace.root))?;
    println!("{}", toolchain(running.trim(), stated)?);
    for component in ["fmt", "clippy"] {
        if !answers(&mut workspace.cargo([component, "--version"])) {
            let name = if component == "fmt" { "rustfmt" } else { component };
            run(Command::new("rustup").args(["component", "add", name]).current_dir(&workspace.root))
                .map_err(|problem| format!("{name} is missing, a component of the Rust toolchain: {problem}"))?;
        }
    }
    for tool in TOOLS.iter().filter(|tool| !(tool.is_there)()) {
        install(tool)?;
    }
    Ok(())
}

/// Whether a tool is there, told by a command that ends well.
fn ends_well(program: &str, args: &[&str]) -> bool {
    answers(Command::new(program).args(args))
}

/// Says whether this run also checks the oldest Rust that is supported; an error where the running one is older.
fn toolchain(running: &str, stated: &str) -> Result<String> {
    let found = running.split(' ').nth(1).unwrap_or_default();
    match (minor(found), minor(stated)) {
        (Some(found_minor), Some(stated_minor)) if found_minor < stated_minor => {
            Err(format!("Rust {found} is older than the {stated} that the workspace needs"))
        }
        (Some(found_minor), Some(stated_minor)) if found_minor == stated_minor => {
            Ok(format!("Rust {found}: this is the oldest that is supported, so the run checks that it builds with it"))
        }
        (Some(_), Some(_)) => Ok(format!(
            "WARNING: Rust {found} is newer than {stated}, the oldest that is supported: whether it builds with that is \
             NOT checked"
        )),
        _ => Err(format!("can't compare the running Rust ({running:?}) with `rust-version` ({stated:?})")),
    }
}

fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn install(tool: &Tool) -> Result<()> {
    let Tool { name, package, .. } = tool;
    if !is_root() || !answers(Command::new("apt-get").arg("--version")) {
        return Err(format!("{name} is missing, and can't be installed here: install it (Debian: {package})"));
    }
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run(apt().arg("update"))?;
    run(apt().args(["install", "--yes", "--no-install-recommends", package]))
}

fn lint(workspace: &Workspace) -> Result<()> {
    let args = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    run(&mut workspace.cargo(args))
}

fn features(workspace: &Workspace) -> Result<()> {
    // What is not published is built with the rest of the workspace, as nobody depends on it.
    for package in workspace.members().filter(|package| package.is_published()) {
        for feature in std::iter::once(None).chain(features_of(package).into_iter().map(Some)) {
            let mut command = workspace.cargo(["check", "--quiet", "--no-default-features", "-p", &package.name]);
            if let Some(feature) = feature {
                command.args(["--features", feature]);
            }
            run(&mut command)?;
        }
    }
    Ok(())
}

/// The features to check alone: all but `default`, which is made of the others.
fn features_of(package: &Package) -> BTreeSet<&str> {
    package.features.keys().map(String::as_str).filter(|feature| *feature != "default").collect()
}

fn test(workspace: &Workspace) -> Result<()> {
    let runtimes = runtimes::install(workspace)?;
    let tests = |args: &[&str]| {
        let mut command = workspace.cargo(["test", "--workspace", "--all-features"]);
        command.args(args).envs(TEST_ENVIRONMENT.iter().copied()).env(runtimes::VARIABLE, &runtimes);
        command
    };
    run(&mut tests(&[]))?;
    let servers = Servers::start()?;
    let mut ignored = vec!["--tests", "--", "--ignored"];
    ignored.extend(NEEDS);
    // What takes long is for `cargo xtask soak`.
    ignored.extend(["--skip", "soak"]);
    let list = output(tests(&ignored).arg("--list"))?;
    let there = |need: &&str| list.lines().any(|line| line.ends_with(": test") && line.contains(need));
    if let Some(need) = NEEDS.iter().find(|need| !there(need)) {
        return Err(format!("there is no ignored test with `{need}` in its name"));
    }
    run(tests(&ignored).envs(servers.variables()))
}

fn api_docs(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo(["doc", "--workspace", "--no-deps", "--all-features"]);
    run(command.env("RUSTDOCFLAGS", "-D warnings"))
}

fn examples(workspace: &Workspace) -> Result<()> {
    for package in workspace.members().filter(|package| is_example(&workspace.folder(package))) {
        let mut command = workspace.cargo(["run", "--quiet", "-p", &package.name]);
        // It serves until it is stopped, which its own tests and `readme` see to.
        if package.name == "local-gateway" {
            command.args(["--", "--print-config"]);
        }
        run(&mut command)?;
    }
    Ok(())
}

/// Whether a folder's crate is an example that runs by itself; functions are started by a driver.
fn is_example(folder: &str) -> bool {
    folder.starts_with("examples/") && !folder.starts_with("examples/functions/")
}

/// Builds them without optimising, from what the tests have built already: figures are for `cargo xtask bench`.
fn benches(workspace: &Workspace) -> Result<()> {
    run(&mut workspace.cargo(["bench", "--workspace", "--all-features", "--no-run", "--profile", "dev"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_supported_rust_is_recognised() {
        assert!(toolchain("rustc 1.95.2 (abc 2026-04-14)", "1.95").unwrap().contains("oldest"));
        assert!(toolchain("rustc 1.96.0-nightly (abc 2026-04-14)", "1.95").unwrap().starts_with("WARNING"));
        assert!(toolchain("rustc 1.94.0 (abc 2026-01-01)", "1.95").is_err());
        assert!(toolchain("", "1.95").is_err());
    }

    #[test]
    fn all_steps_are_chosen_unless_some_are_named() {
        assert_eq!(chosen(&[]).unwrap().len(), STEPS.len());
        let names: Vec<_> = chosen(&["lint".into(), "tools".into()]).unwrap().iter().map(|step| step.name).collect();
        assert_eq!(names, ["tools", "lint"]);
        assert!(chosen(&["fly".into()]).is_err());
    }

    #[test]
    fn the_help_lists_every_step_in_order() {
        let lines = HELP.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
        assert_eq!(lines.collect::<Vec<_>>(), STEPS.iter().map(|step| step.name).collect::<Vec<_>>());
    }

    #[test]
    fn a_tool_is_there_if_its_command_ends_well() {
        assert!(ends_well("sh", &["-c", "exit 0"]));
        assert!(!ends_well("sh", &["-c", "exit 1"]));
        assert!(!ends_well("no-such-program", &[]));
    }

    #[test]
    fn a_function_is_no_example_that_runs_by_itself() {
        assert!(is_example("examples/quickstart"));
        assert!(!is_example("examples/functions/axum-worker"));
        assert!(!is_example("drivers/local-process"));
    }

    #[test]
    fn the_table_has_a_line_for_each_step_and_the_total() {
        let text = table(&[("format", true, Duration::from_secs(1)), ("lint", false, Duration::from_millis(2500))]);
        assert_eq!(
            text,
            "format        passed      1.0 s\nlint          FAILED      2.5 s\ntotal                     3.5 s"
        );
    }
}
