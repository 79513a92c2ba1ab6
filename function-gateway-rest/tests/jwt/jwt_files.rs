//! Keys from a file.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use function_gateway_core::ErrorKind;
use function_gateway_rest::auth::jwt::JwtKeys;
use tempfile::TempDir;
use tokio::time::advance;

use crate::kit::*;

/// Writes a file whose last change was so many seconds after the epoch.
fn write(path: &Path, text: &str, changed: u64) {
    fs::write(path, text).unwrap();
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(changed);
    File::options().write(true).open(path).unwrap().set_modified(changed).unwrap();
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_file_that_has_changed_is_read_again() {
    let (folder, old, new) = (TempDir::new().unwrap(), p256(), p256());
    let path = folder.path().join("keys.json");
    write(&path, &jwks([old.jwk("a")]), 1);
    let gateway = gateway(JwtKeys::from_file(&path).await.unwrap());
    assert_accepted(&ask(&gateway, &old.token("a")).await);

    write(&path, &jwks([new.jwk("b")]), 2);
    // It was looked at less than a second ago.
    assert_accepted(&ask(&gateway, &old.token("a")).await);
    advance(SECOND).await;
    assert_accepted(&ask(&gateway, &new.token("b")).await);
    assert_refused(&ask(&gateway, &old.token("a")).await);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_has_not_changed_is_not_read() {
    let (folder, old, new) = (TempDir::new().unwrap(), p256(), p256());
    let path = folder.path().join("keys.json");
    write(&path, &jwks([old.jwk("a")]), 1);
    let gateway = gateway(JwtKeys::from_file(&path).await.unwrap());
    write(&path, &jwks([new.jwk("a")]), 1);
    advance(3600 * SECOND).await;
    assert_accepted(&ask(&gateway, &old.token("a")).await);
    // An hour counts from when it was last looked at.
    fs::remove_file(&path).unwrap();
    advance(SECOND).await;
    assert_accepted(&ask(&gateway, &old.token("a")).await);
}

#[tokio::test(start_paused = true)]
async fn keys_may_be_in_pem() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("keys.pem");
    let signers = [&*RSA, &p256(), &ed25519()];
    for signer in signers {
        write(&path, &signer.pem(), 1);
        let gateway = gateway(JwtKeys::from_file(&path).await.unwrap());
        assert_accepted(&ask(&gateway, &signer.token("whatever")).await);
    }
    let all: Vec<_> = signers.iter().map(|signer| format!("# a comment\n{}", signer.pem())).collect();
    write(&path, &all.concat().replace('\n', "\r\n"), 2);
    let gateway = gateway(JwtKeys::from_file(&path).await.unwrap());
    for signer in signers {
        assert_accepted(&ask(&gateway, &signer.token("whatever")).await);
    }
    assert_refused(&ask(&gateway, &p256().token("whatever")).await);
}

#[tokio::test(start_paused = true)]
async fn the_last_keys_are_used_on_while_the_file_is_of_no_use() {
    let (folder, signer) = (TempDir::new().unwrap(), p256());
    let path = folder.path().join("keys.json");
    write(&path, &jwks([signer.jwk("a")]), 1);
    let gateway = gateway(JwtKeys::from_file(&path).await.unwrap());
    write(&path, "{\"keys\": [", 2);
    advance(SECOND).await;
    assert_accepted(&ask(&gateway, &signer.token("a")).await);
    fs::remove_file(&path).unwrap();
    advance(3598 * SECOND).await;
    assert_accepted(&ask(&gateway, &signer.token("a")).await);
    advance(SECOND).await;
    assert_fails_as(&ask(&gateway, &signer.token("a")).await, ErrorKind::DependencyUnavailable);
    write(&path, &jwks([signer.jwk("a")]), 1);
    advance(SECOND).await;
    assert_accepted(&ask(&gateway, &signer.token("a")).await);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_of_no_use_is_refused_at_the_start() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("keys");
    let pem = p256().pem();
    let refused = async || JwtKeys::from_file(&path).await.unwrap_err().kind();
    assert_eq!(refused().await, ErrorKind::InvalidArgument);
    for bad in [
        String::new(),
        "no keys".to_owned(),
        jwks([]),
        pem.replace("PUBLIC", "PRIVATE"),
        pem.replace("END", "ENDE"),
        pem.replacen('M', "*", 1),
        pem.replacen("MFkw", "MFkx", 1),
        format!("{pem}{}", pem.replace("PUBLIC KEY", "CERTIFICATE")),
        format!("{pem}{}", " ".repeat(256 * 1024)),
    ] {
        fs::write(&path, &bad).unwrap();
        assert_eq!(refused().await, ErrorKind::InvalidArgument, "{bad}");
    }
    fs::write(&path, &pem).unwrap();
    assert!(JwtKeys::from_file(&path).await.is_ok());
}
