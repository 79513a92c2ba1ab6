//! `keys`, and a gateway that asks who calls.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use crate::common::{Gateway, Ran, file, folder, program};

/// Runs a command of `keys` on the database in a folder.
fn keys(data: &std::path::Path, args: &[&str]) -> Ran {
    let mut command = program(&["keys"]);
    Ran::of(command.args(args).args(["--data", data.to_str().unwrap()]))
}

#[test]
fn a_key_is_made_used_and_revoked() {
    let folder = folder();
    // The first one is made before there is a gateway.
    let made = keys(folder.path(), &["create", "--principal", "ada", "--scope", "write,invoke", "--expires", "90d"])
        .ends_with(0);
    let key = made.out.trim_end();
    assert!(key.starts_with("fgk_") && !key.contains(char::is_whitespace), "{made:#?}");
    assert!(made.err.contains("local/ada with invoke,write expires ") && !made.err.contains(key), "{made:#?}");

    let mut gateway = Gateway::start(folder.path(), &["--authentication", "api-keys"]);
    assert!(gateway.out.wait_for("  Access ").ends_with("with authentication"));
    let with_key = |args: &[&str]| Ran::of(gateway.command(args).env("FUNCTION_GATEWAY_KEY", key));
    with_key(&["function", "list"]).ends_with(0);
    assert!(with_key(&["invoke", "word-count", "-d", "a b"]).ends_with(0).out.contains("\"words\": 2"));
    let key_file = file(&folder, "key", &format!("{key}\n"));
    gateway.client(&["function", "list", "--key-file", &key_file]).ends_with(0);

    let nobody = gateway.client(&["function", "list"]).ends_with(3);
    assert!(nobody.err.contains("unauthenticated") && nobody.err.contains("FUNCTION_GATEWAY_KEY"), "{nobody:#?}");
    let wrong = Ran::of(gateway.command(&["function", "list"]).env("FUNCTION_GATEWAY_KEY", "fgk_wrong")).ends_with(3);
    assert!(wrong.err.contains("unauthenticated"), "{wrong:#?}");

    let list = keys(folder.path(), &["list"]).ends_with(0);
    assert!(list.out.starts_with("ID ") && !list.out.contains(key), "{list:#?}");
    let listed = keys(folder.path(), &["list", "-o", "json"]).ends_with(0).json();
    assert_eq!((&listed[0]["principal"], &listed[0]["state"]), (&"ada".into(), &"active".into()), "{listed}");
    let id = listed[0]["id"].as_str().unwrap();
    assert_eq!(list.row(id)[1..4], ["ada", "invoke,write", "active"], "{list:#?}");

    assert_eq!(keys(folder.path(), &["revoke", id]).ends_with(0).out, format!("{id} is revoked\n"));
    // The gateway remembers a key for a second.
    let mut command = gateway.command(&["function", "list", "--key-file", &key_file]);
    let deadline = std::time::Instant::now() + crate::common::PATIENCE;
    while Ran::of(&mut command).code == Some(0) {
        assert!(std::time::Instant::now() < deadline, "a revoked key is let in");
    }
    Ran::of(&mut command).ends_with(3);
    assert_eq!(keys(folder.path(), &["list"]).row(id)[3], "revoked");
    gateway.stop();
}

#[test]
fn a_key_may_do_what_it_was_given() {
    let folder = folder();
    let args = ["create", "--principal", "worker", "--scope", "invoke:word-*", "-o", "json"];
    let made = keys(folder.path(), &args).ends_with(0).json();
    let key = made["key"].as_str().unwrap();
    assert_eq!(made["scopes"], serde_json::json!(["invoke:word-*"]));
    let gateway = Gateway::start(folder.path(), &["--authentication", "api-keys"]);
    let with_key = |args: &[&str]| Ran::of(gateway.command(args).env("FUNCTION_GATEWAY_KEY", key));
    with_key(&["invoke", "word-count", "-d", "a"]).ends_with(0);
    for args in [&["invoke", "fail"][..], &["function", "list"], &["executions", "list"]] {
        let ran = with_key(args).ends_with(3);
        assert!(ran.err.contains("permission_denied"), "{ran:#?}");
    }
}

#[test]
fn the_printed_lines_make_a_key_and_use_it() {
    let folder = folder();
    let mut gateway = Gateway::start(folder.path(), &["--authentication", "api-keys"]);
    let make = gateway.out.wait_for("export FUNCTION_GATEWAY_KEY=");
    let list = gateway.out.wait_for("executions list");
    let list = list.split('#').next().unwrap();
    let mut call = gateway.out.wait_for("to be or not to be");
    if Command::new("curl").arg("--version").output().is_err() {
        call = list.replace("executions list", "invoke word-count -d 'to be or not to be'");
    }
    // What was just executed takes a moment to be in the list.
    let script = format!("{make}\n{call}\nuntil {list} | grep word-count; do :; done");
    let ran = Ran::of(Command::new("sh").args(["-euc", &script])).ends_with(0);
    assert!(ran.out.contains("\"words\": 6"), "{ran:#?}");
}

#[test]
fn a_key_that_makes_no_sense_is_refused() {
    let folder = folder();
    for (args, told) in [
        (&["--principal", "ada", "--scope", "reed"][..], "/scopes/0: there is no scope \"reed\""),
        (&["--principal", "ada", "--scope", "read", "--expires", "2001-01-01T00:00:00Z"], "/expires_at: is not later"),
        (&["--principal", "ada", "--scope", "read", "--expires", "soon"], "days such as 90d"),
        (&["--principal", "ada"], "--scope"),
        (&["--principal", "me", "--scope", "read"], "/principal: stands for the caller"),
    ] {
        let mut command = vec!["create"];
        command.extend(args);
        let ran = keys(folder.path(), &command).ends_with(2);
        assert!(ran.err.contains(told), "{ran:#?}");
    }
    let list = keys(folder.path(), &["list", "-o", "json"]).ends_with(0);
    assert_eq!(list.json(), serde_json::json!([]));
    let unknown = ["revoke", "01a2151e-528b-7319-b3f4-0a8bdb250683"];
    assert!(keys(folder.path(), &unknown).ends_with(3).err.contains("there is no such API key"));
}

#[test]
fn a_tenant_sees_its_own_keys() {
    let folder = folder();
    keys(folder.path(), &["create", "--tenant", "acme", "--principal", "ada", "--scope", "admin"]).ends_with(0);
    assert_eq!(keys(folder.path(), &["list", "-o", "json"]).json(), serde_json::json!([]));
    let acme = keys(folder.path(), &["list", "--tenant", "acme", "-o", "json"]).json();
    assert_eq!(acme[0]["tenant"], "acme");
}

#[test]
fn tokens_and_keys_are_known_side_by_side() {
    let folder = folder();
    let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAAny9h0Tf82vRIoev3IItZONBZ8Rb8NABUyFQGqMrIZU=\n-----END PUBLIC KEY-----\n";
    let pem = file(&folder, "issuer.pem", pem);
    let key = keys(folder.path(), &["create", "--principal", "ada", "--scope", "read"]).ends_with(0).out;
    let keys_file = format!("authentication.jwt.keys_file={pem}");
    let gateway = Gateway::start(
        folder.path(),
        &[
            "--authentication",
            "api-keys,jwt",
            "--set",
            "authentication.jwt.issuer=https://login.example",
            "--set",
            "authentication.jwt.audiences=function-gateway",
            "--set",
            &keys_file,
            "--set",
            "authentication.jwt.tenant_claim=org",
        ],
    );
    let list =
        |credential: &str| Ran::of(gateway.command(&["function", "list"]).env("FUNCTION_GATEWAY_KEY", credential));
    list(&key).ends_with(0);
    let with_token = |args: &[&str], token: &str| Ran::of(gateway.command(args).env("FUNCTION_GATEWAY_KEY", token));
    // Another tenant, which has no functions, and may read alone.
    assert_eq!(with_token(&["function", "list", "-o", "json"], TOKEN).ends_with(0).json(), serde_json::json!([]));
    let refused = with_token(&["invoke", "word-count"], TOKEN).ends_with(3);
    assert!(refused.err.contains("permission_denied") || refused.err.contains("not_found"), "{refused:#?}");
    let forged = with_token(&["function", "list"], &TOKEN.replace("6oCyKXl", "6oCyKXk")).ends_with(3);
    assert!(forged.err.contains("unauthenticated"), "{forged:#?}");
}

#[test]
fn tokens_are_known_by_the_keys_that_their_issuer_publishes() {
    let folder = folder();
    let issuer = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = issuer.local_addr().unwrap();
    std::thread::spawn(move || {
        let keys =
            r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "Any9h0Tf82vRIoev3IItZONBZ8Rb8NABUyFQGqMrIZU"}]}"#;
        let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", keys.len());
        for client in issuer.incoming() {
            let mut client = BufReader::new(client.unwrap());
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                client.read_line(&mut line).unwrap();
            }
            client.get_mut().write_all(format!("{head}{keys}").as_bytes()).unwrap();
        }
    });
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = |keys: SocketAddr, data: &str| {
        let settings = [
            "issuer=https://login.example".to_owned(),
            "audiences=function-gateway".to_owned(),
            format!("keys_url=http://{keys}/jwks"),
            "tenant_claim=org".to_owned(),
        ];
        let settings = settings.map(|setting| format!("authentication.jwt.{setting}"));
        let mut args = vec!["--no-samples", "--authentication", "jwt"];
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        Gateway::start(&folder.path().join(data), &args)
    };
    let list = |gateway: &Gateway| Ran::of(gateway.command(&["function", "list"]).env("FUNCTION_GATEWAY_KEY", TOKEN));
    list(&gateway(at, "open")).ends_with(0);
    let failed = list(&gateway(closed, "closed")).ends_with(5);
    assert!(failed.err.contains("dependency_unavailable"), "{failed:#?}");
}

/// That `ada` of `acme` may `read`, until 2100, signed by the private key that belongs to the public one of the test.
const TOKEN: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.\
    eyJpc3MiOiJodHRwczovL2xvZ2luLmV4YW1wbGUiLCJhdWQiOiJmdW5jdGlvbi1nYXRld2F5Iiwic3ViIjoiYWRhIiwib3JnIjoiYWNtZSIsInNjb3BlIjoi\
    cmVhZCIsImV4cCI6NDEwMjQ0NDgwMH0.\
    6oCyKXl-dI-Qx-vQ6_A-FN1HJ67BuvehLC5sR8kncjI9DyYCNY8UvNpEvYx1Je7ici3rTqNOS3EiCGs3yTvVBA";
