//! Flags over environment over file over defaults, and what is said where something is wrong.

use std::process::Command;

use crate::common::{Ran, file, folder, program};

fn printed(command: &mut Command) -> toml::Table {
    Ran::of(command.arg("--print-config")).ends_with(0).out.parse().unwrap()
}

#[test]
fn a_later_layer_counts_more() {
    let folder = folder();
    let text = "listen = '127.0.0.1:1001'\ntenant = 'one'\n[limits]\nmax_queued = 1\n[retention]\nmax_age_days = 30\n";
    let file = file(&folder, "a.toml", text);
    let mut command = program(&["--config", &file, "--listen", "127.0.0.1:1003", "--set", "limits.max_kept_bytes=7"]);
    command.env("FUNCTION_GATEWAY_LISTEN", "127.0.0.1:1002").env("FUNCTION_GATEWAY_LIMITS_MAX_QUEUED", "2");
    let config = printed(&mut command);
    assert_eq!(config["listen"].as_str(), Some("127.0.0.1:1003"));
    assert_eq!(config["tenant"].as_str(), Some("one"));
    assert_eq!(config["limits"]["max_queued"].as_integer(), Some(2));
    assert_eq!(config["limits"]["max_kept_bytes"].as_integer(), Some(7));
    assert_eq!(config["limits"]["total_timeout_ms"].as_integer(), Some(30_000));
    assert_eq!(config["retention"]["max_age_days"].as_integer(), Some(30));
    assert_eq!(config["drivers"]["local"]["kind"].as_str(), Some("local-process"));
}

#[test]
fn a_file_in_the_folder_is_read_and_can_be_the_one_that_was_printed() {
    let folder = folder();
    let mut first = program(&["--set", "drivers.big.max_workers=3", "--authentication", "api-keys"]);
    first.args(["--set", "drivers.faas.kind=openfaas", "--set", "drivers.faas.auth.bearer.token=token"]);
    first.args(["--set", "drivers.small.max_workers=1", "--set", "cors.origins=https://a.example,https://b.example:1"]);
    let printed = Ran::of(first.arg("--print-config")).ends_with(0).out;
    file(&folder, "function-gateway.toml", &printed);
    let again = Ran::of(program(&["--print-config"]).current_dir(folder.path())).ends_with(0).out;
    assert_eq!(again, printed);
}

#[test]
fn the_database_moves_with_the_data_also_where_the_file_was_printed() {
    let folder = folder();
    let first = folder.path().join("first");
    let printed = Ran::of(program(&["--print-config", "--data"]).arg(&first)).ends_with(0).out;
    let file = file(&folder, "a.toml", &printed);
    assert_eq!(Ran::of(&mut program(&["--print-config", "--config", &file])).ends_with(0).out, printed);
    let second = folder.path().join("second");
    Ran::of(program(&["keys", "list", "--config", &file, "--data"]).arg(&second)).ends_with(0);
    assert!(second.join("gateway.db").exists() && !first.exists());
}

#[test]
fn what_is_secret_is_not_printed() {
    let folder = folder();
    let file = file(&folder, "a.toml", "[secrets.memory]\n'acme/key' = 'hunter2'\n");
    let mut command = program(&["--config", &file, "--print-config"]);
    command.env("FUNCTION_GATEWAY_STORE_URL", "postgres://ada:hunter3@db/functions");
    let text = Ran::of(&mut command).ends_with(0).out;
    assert!(!text.contains("hunter"), "{text}");
    for line in ["# url = \"postgres://ada:***@db/functions\" # The value is not shown.", "# \"acme/key\" = \"***\" "] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn what_is_wrong_in_a_file_is_told_with_its_place() {
    let folder = folder();
    for (text, told) in [
        ("\nlistn = '127.0.0.1:1'\n", "line 2: there is no setting `listn`; did you mean `listen`?"),
        ("[retentoin]\n", "line 1: there is no setting `retentoin`; did you mean `retention`?"),
        (
            "[limits]\n\nmax_queud = 1",
            "line 3: there is no setting `limits.max_queud`; did you mean `limits.max_queued`?",
        ),
        ("max_age_days = 1", "line 1: there is no setting `max_age_days`; did you mean `retention.max_age_days`?"),
        (
            "[drivers.x]\nmax_worker = 1",
            "line 2: there is no setting `drivers.x.max_worker`; did you mean `drivers.x.max_workers`?",
        ),
        ("[limits]\nmax_queued = '1'", "line 2: `limits.max_queued`: invalid type: string \"1\", expected u32"),
        ("limits = 1", "line 1: `limits` is no setting but a table of settings"),
        ("tenant = 'a b'", "line 1: `tenant`: invalid tenant \"a b\""),
        ("[authentication]\nmodes = ['api-key']", "line 2: `authentication.modes[0]`: unknown variant `api-key`"),
        ("a = = 1", "TOML parse error at line 1"),
    ] {
        let file = file(&folder, "a.toml", text);
        let ran = Ran::of(&mut program(&["--config", &file])).ends_with(2);
        assert!(
            ran.err.contains(&format!("{file}, {told}")) || ran.err.contains(&format!("{file}: {told}")),
            "{ran:#?}"
        );
    }
    let ran = Ran::of(&mut program(&["--config", "is-not-there.toml"])).ends_with(2);
    assert!(ran.err.contains("is-not-there.toml: No such file"), "{ran:#?}");
}

#[test]
fn what_is_wrong_in_the_environment_is_told_by_every_command() {
    for command in [&["serve"][..], &["function", "list"], &["keys", "list"]] {
        let ran = Ran::of(program(command).env("FUNCTION_GATEWAY_LISTN", "127.0.0.1:1")).ends_with(2);
        assert!(ran.err.contains("FUNCTION_GATEWAY_LISTN"), "{ran:#?}");
        assert!(ran.err.contains("did you mean `FUNCTION_GATEWAY_LISTEN`?"), "{ran:#?}");
    }
    let mut command = program(&["serve"]);
    let ran = Ran::of(command.env("FUNCTION_GATEWAY_LIMITS_MAX_QUEUED", "many")).ends_with(2);
    assert!(
        ran.err.contains("FUNCTION_GATEWAY_LIMITS_MAX_QUEUED: `limits.max_queued`: \"many\" is not a whole"),
        "{ran:#?}"
    );
}

#[test]
fn what_is_wrong_in_flags_is_told() {
    for (args, told) in [
        (&["--set", "limits.max_queud=1"][..], "did you mean `limits.max_queued`?"),
        (&["--set", "limits"], "\"limits\" is not like"),
        (&["--set", "secrets.memory.acme/key=x"], "a secret stands in the file alone"),
        (&["--listen", "somewhere"], "the flag --listen: `listen`: invalid socket address"),
        (&["--authentication", "none,api-keys"], "none goes with no other"),
        (&["--authentication", ""], "one is needed"),
        (&["--set", "cors.origins=*"], "the flag --set: `cors.origins`: without authentication no pages are let in"),
        (
            &["--authentication", "api-keys", "--set", "cors.origins=a.example"],
            "the flag --set: `cors.origins`: \"a.example\" is no origin",
        ),
        (&["--set", "drivers.x.kind=openfaas", "--set", "drivers.x.auth.bearer.token=t"], "`drivers.x`: "),
        (
            &["--set", "drivers.x.kind=openfaas", "--set", "drivers.x.max_workers=1"],
            "`drivers.x.max_workers`: unknown field",
        ),
        (
            &["--set", "drivers.x.kind=knative", "--set", "drivers.x.http_version=http3"],
            "`drivers.x.http_version`: unknown variant `http3`",
        ),
        (&["--set", "drivers.x.kind=knative", "--set", "drivers.x.page_size=0"], "`drivers.x`: page_size"),
        (&["--authentication", "jwt"], "`authentication.jwt.issuer` is needed"),
        (&["--log-level", "info,=x"], "`log.level`"),
        (&["--lisen", "127.0.0.1:1"], "--listen"),
    ] {
        let folder = folder();
        let ran = Ran::of(program(args).args(["--data", folder.path().to_str().unwrap()])).ends_with(2);
        assert!(ran.err.contains(told), "{ran:#?}");
    }
}

#[test]
fn without_authentication_other_machines_are_kept_out() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let ran = Ran::of(&mut program(&["--listen", address])).ends_with(2);
        assert!(ran.err.contains("Without authentication the gateway listens on this machine alone"), "{ran:#?}");
    }
}

#[test]
fn the_help_says_how_the_program_ends() {
    for args in [&["--help"][..], &["-h"], &["function", "--help"], &["invoke", "-h"], &["keys", "-h"]] {
        let help = Ran::of(&mut program(args)).ends_with(0).out;
        for line in
            ["0    Done", "1    The function failed", "2    The command line", "4    The gateway is out of reach"]
        {
            assert!(help.contains(line), "{help}");
        }
    }
}
