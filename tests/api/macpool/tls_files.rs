//! A certificate by file, as cert-manager's Secret is mounted: replaced under load, all at once, by a symbolic link.

use std::os::unix::fs::symlink;

use super::*;

/// A Secret of type `kubernetes.io/tls`, as the kubelet mounts it (`AtomicWriter` in Kubernetes' pkg/volume/util).
struct Volume {
    folder: tempfile::TempDir,
}

impl Volume {
    /// With the first of these certificates.
    fn new(certificates: &[(PathBuf, PathBuf)]) -> Self {
        let volume = Self { folder: tempfile::tempdir().unwrap() };
        volume.write(0, &certificates[0]);
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), volume.at(name)).unwrap();
        }
        volume
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces what was there before.
    fn write(&self, number: usize, (certificate, key): &(PathBuf, PathBuf)) {
        let new = format!("..2026_{number}");
        std::fs::create_dir(self.at(&new)).unwrap();
        std::fs::copy(certificate, self.at(&new).join("tls.crt")).unwrap();
        std::fs::copy(key, self.at(&new).join("tls.key")).unwrap();
        symlink(&new, self.at("..data_tmp")).unwrap();
        std::fs::rename(self.at("..data_tmp"), self.at("..data")).unwrap();
        if let Some(old) = number.checked_sub(1) {
            std::fs::remove_dir_all(self.at(&format!("..2026_{old}"))).unwrap();
        }
    }
}

/// A certificate that signs itself, and its key.
fn make(folder: &Path, number: usize) -> (PathBuf, PathBuf) {
    let (certificate, key) = (folder.join(format!("{number}.crt")), folder.join(format!("{number}.key")));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args(["-days", "2", "-subj", &format!("/CN=macpool-{number}")]);
    openssl.args(["-addext", "subjectAltName=IP:127.0.0.1", "-out"]);
    run(openssl.arg(&certificate).arg("-keyout").arg(&key));
    (certificate, key)
}

#[test]
fn certificates_by_file_are_replaced_under_load_without_a_failed_write() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let folder = tempfile::tempdir().unwrap();
    let certificates: Vec<_> = (0..4).map(|number| make(folder.path(), number)).collect();
    // As cainjector does it: all of them are trusted.
    let bundle = certificates.iter().map(|(certificate, _)| std::fs::read_to_string(certificate).unwrap());
    let bundle = STANDARD.encode(bundle.collect::<String>());
    let configuration =
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/kubemacpool-mutator";
    let mut webhooks = cluster.get(configuration);
    for webhook in webhooks["webhooks"].as_array_mut().unwrap() {
        webhook["clientConfig"]["caBundle"] = json!(bundle);
    }
    let (status, answer) = cluster.api.request("PUT", configuration, Some(&webhooks.to_string()));
    assert_eq!(status, 200, "{answer}");
    let volume = Volume::new(&certificates);
    let (certificate, key) = (volume.at("tls.crt"), volume.at("tls.key"));
    let arguments = &["--tls-cert", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let replicas = [cluster.replica(arguments), cluster.replica(arguments)];
    let presents = |replica: &Replica, (certificate, _): &(PathBuf, PathBuf)| {
        let url = format!("https://{}/mutate-virtualmachines", replica.reviews);
        output(Command::new("curl").arg("-s").arg("--cacert").arg(certificate).arg(url)).status.success()
    };
    let created = cluster.create_while(|| {
        for (number, certificate) in certificates.iter().enumerate() {
            if number > 0 {
                volume.write(number, certificate);
            }
            for replica in &replicas {
                eventually("the certificate is used", PATIENCE, || {
                    presents(replica, certificate).then_some(())
                });
            }
        }
    });
    cluster.assert_unique(created);
    assert!(replicas.iter().all(|replica| !presents(replica, &certificates[0])));
}
