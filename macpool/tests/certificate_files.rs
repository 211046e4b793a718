//! A certificate by file, as cert-manager writes it: read again when it changes, while connections go on.

#![expect(clippy::unwrap_used, reason = "a helper's failure is the test's failure")]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Macpool, VMS};

/// Writes a self-signed certificate and its key.
fn make(folder: &Path, cert: &str, key: &str) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=macpool", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
        .arg(folder.join(key))
        .arg("-out")
        .arg(folder.join(cert))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// Does it present this certificate? Its answer to a GET does not matter.
fn presents(macpool: &Macpool, cert: &Path) -> bool {
    macpool.curl_with(cert, VMS, &[]).status.success()
}

#[test]
fn a_new_certificate_is_used_and_a_bad_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    make(folder.path(), "cert", "key");
    std::fs::copy(at("cert"), at("first")).unwrap();
    let (cert, key) = (at("cert"), at("key"));
    let macpool = Macpool::start(&["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()]);
    assert!(presents(&macpool, &at("first")));
    // The certificate of another key: half of a replacement, or a mistake.
    make(folder.path(), "second", "second-key");
    std::fs::copy(at("second"), &cert).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !presents(&macpool, &at("second")) {
        let either = presents(&macpool, &at("first")) || presents(&macpool, &at("second"));
        assert!(either, "the old one, until the new one is whole");
        assert!(Instant::now() < deadline, "the new certificate is not used");
        // The other half.
        std::fs::copy(at("second-key"), &key).unwrap();
    }
    assert!(!presents(&macpool, &at("first")));
}

#[test]
fn files_that_are_no_certificate_are_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), "cert", "key");
    make(folder.path(), "other", "other-key");
    std::fs::write(folder.path().join("junk"), "junk").unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for (cert, key, reason) in [
        ("missing", "key", "read "),
        ("junk", "key", "certificate"),
        ("cert", "junk", "the key is not PEM"),
        ("cert", "other-key", "certificate and key cannot be used"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_macpool"))
            .args(["--store", &format!("dir:{}", path("store")), "--listen", "127.0.0.1:0"])
            .args(["--listen-metrics", "127.0.0.1:0", "--tls-cert", &path(cert), "--tls-key", &path(key)])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(reason), "{cert}, {key}: {text}");
    }
}
