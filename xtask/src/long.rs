//! What takes long, and is therefore no part of `cargo xtask test`.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::servers::{Servers, is_postgres_measured};
use crate::workspace::{Workspace, output, run};
use crate::{Result, files, instructions};

pub(crate) const SOAK_SUMMARY: &str = "Run the tests with long counts, optimised";
pub(crate) const SOAK_HELP: &str = "\
Runs every ignored test whose name begins with `soak_`. The tests read two variables:

  FUNCTION_GATEWAY_SOAK    how many times the usual count (--times N; 10 unless given)
  FUNCTION_GATEWAY_SEED    the seed of what is random (--seed N; from the clock unless given)

The seed is shown, so that a failure can be repeated. PostgreSQL and MariaDB are started as for `cargo xtask test`.";

pub(crate) const BENCH_SUMMARY: &str = "Run the benchmarks and show their figures";
pub(crate) const BENCH_HELP: &str = "\
Runs `cargo bench -p function-gateway-benches` with the arguments, such as `--bench pipeline`. The method is described
in docs/performance.md. For `sql`, PostgreSQL is started with a quarter of the memory as `shared_buffers`, unless
FUNCTION_GATEWAY_TEST_POSTGRES_URL names a server, or there is none.

  --instructions    count instructions instead, by valgrind, and compare with benches/instructions.txt";

/// The start of the names of these tests.
const SOAK: &str = "soak_";

pub(crate) fn soak(workspace: &Workspace, args: &[String]) -> Result<()> {
    let SoakOptions { seed, times } = options_of(args)?;
    let seed = seed.unwrap_or_else(clock_seed);
    let packages = packages(workspace)?;
    let tests = || {
        let mut command = workspace.cargo(["test", "--release", "--all-features", "--tests"]);
        command.args(packages.iter().flat_map(|package| ["--package", package])).args(["--", "--ignored", SOAK]);
        command
    };
    let list = output(tests().arg("--list"))?;
    let count = list.lines().filter(|line| line.ends_with(": test")).count();
    if count == 0 {
        return Err(format!("there is no ignored test whose name begins with `{SOAK}`"));
    }
    println!("{count} tests, seed {seed}, {times} times the usual count");
    let servers = Servers::start()?;
    let mut command = tests();
    command.arg("--nocapture");
    command.env("FUNCTION_GATEWAY_SOAK", times.to_string()).env("FUNCTION_GATEWAY_SEED", seed.to_string());
    run(command.envs(servers.variables()))
        .map_err(|problem| format!("{problem}; repeat with `cargo xtask soak --seed {seed} --times {times}`"))
}

/// The packages that have such tests: building the tests of all, optimised, takes longer than to run these.
fn packages(workspace: &Workspace) -> Result<Vec<&str>> {
    let mut packages = Vec::new();
    for package in workspace.members() {
        let files = files::read_all(&workspace.root, package.folder())?;
        let name = format!("fn {SOAK}");
        if files.iter().any(|file| file.has_extension("rs") && file.text.contains(&name)) {
            packages.push(package.name.as_str());
        }
    }
    Ok(packages)
}

#[derive(Debug, PartialEq, Eq)]
struct SoakOptions {
    seed: Option<u64>,
    times: u64,
}

fn options_of(args: &[String]) -> Result<SoakOptions> {
    let mut options = SoakOptions { seed: None, times: 10 };
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        let mut number = || {
            let value = args.next().ok_or_else(|| format!("{flag} needs a number"))?;
            value.parse::<u64>().map_err(|error| format!("{flag} {value}: {error}"))
        };
        match flag.as_str() {
            "--seed" => options.seed = Some(number()?),
            "--times" => options.times = number()?,
            _ => return Err(format!("unexpected argument {flag:?}")),
        }
    }
    Ok(options)
}

fn clock_seed() -> u64 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    // The lower bits are what differs between two runs.
    u64::try_from(nanos & u128::from(u64::MAX)).unwrap_or_default()
}

pub(crate) fn bench(workspace: &Workspace, args: &[String]) -> Result<()> {
    if args == ["--instructions"] {
        return instructions::check(workspace);
    }
    let wants_sql = wants_bench(args, "sql");
    let servers = (wants_sql && is_postgres_measured()).then(Servers::start_for_benchmarks).transpose()?;
    if wants_sql && servers.is_none() {
        println!("PostgreSQL is not there, so that SQLite is measured alone");
    }
    let mut command = workspace.cargo(["bench", "-p", "function-gateway-benches"]);
    run(command.args(args).envs(servers.iter().flat_map(Servers::variables)))
}

/// Whether cargo is told to run a benchmark: by name, or as one of all.
fn wants_bench(args: &[String], name: &str) -> bool {
    let of_cargo = || args.iter().take_while(|arg| *arg != "--");
    if of_cargo().any(|arg| ["--no-run", "--help", "-h"].contains(&arg.as_str())) {
        return false;
    }
    let named =
        of_cargo().zip(of_cargo().skip(1)).filter(|(flag, _)| *flag == "--bench").map(|(_, name)| name.as_str());
    let joined = of_cargo().filter_map(|arg| arg.strip_prefix("--bench="));
    let mut all = named.chain(joined).peekable();
    all.peek().is_none() || all.any(|found| found == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<SoakOptions> {
        options_of(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn seed_and_times_are_options() {
        assert_eq!(parse(&[]), Ok(SoakOptions { seed: None, times: 10 }));
        assert_eq!(parse(&["--times", "3", "--seed", "7"]), Ok(SoakOptions { seed: Some(7), times: 3 }));
    }

    #[test]
    fn a_benchmark_is_wanted_by_name_or_with_all() {
        let wants = |args: &[&str]| wants_bench(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>(), "sql");
        assert!(wants(&[]) && wants(&["--bench", "sql", "--", "size"]) && wants(&["--bench=sql"]));
        assert!(!wants(&["--no-run"]) && wants(&["--bench", "sql", "--", "--help"]));
        assert!(!wants(&["--bench", "rest"]) && !wants(&["--bench=rest", "--", "--bench", "sql"]));
    }

    #[test]
    fn what_is_no_number_or_no_option_is_refused() {
        assert!(parse(&["--seed"]).is_err());
        assert!(parse(&["--seed", "x"]).is_err());
        assert!(parse(&["--fast"]).is_err());
    }
}
