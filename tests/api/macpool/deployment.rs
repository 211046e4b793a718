//! The Deployment itself: with exactly its arguments and rights, on its own ports, as a pod of the cluster.

use e2e::Container;

use super::*;

#[test]
fn the_deployment_runs_with_its_own_arguments_and_rights() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:ff");
    let container = Container::of(&cluster.api, "macpool", "macpool");
    let _process = Daemon::start(&mut container.command(&cluster.api));
    for probe in ["readinessProbe", "livenessProbe"] {
        let url = container.probe(probe);
        eventually("its probes succeed", PATIENCE, || {
            output(Command::new("curl").args(["-sf", &url])).status.success().then_some(())
        });
    }
    // The webhook trusts it under the name of the Service, and reaches it at the port that the Service leads to.
    let webhook = manifest("webhook");
    let service = cluster.get("/api/v1/namespaces/macpool/services/macpool");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "webhook");
    let configuration =
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/kubemacpool-mutator";
    let bundle = cluster.get(configuration)["webhooks"][0]["clientConfig"]["caBundle"].clone();
    let ca = cluster.kubeconfig.with_file_name("ca.crt");
    std::fs::write(&ca, STANDARD.decode(bundle.as_str().unwrap()).unwrap()).unwrap();
    for path in ["/mutate-virtualmachines", "/mutate-pods"] {
        assert!(webhook.contains(&format!("path: {path}\n")));
        let answer = output(
            Command::new("curl")
                .args(["-s", "-w", "%{http_code}", "-d", "{}", "--cacert"])
                .arg(&ca)
                .arg("--connect-to")
                .arg(format!("macpool.macpool.svc:443:127.0.0.1:{}", container.port("webhook")))
                .arg(format!("https://macpool.macpool.svc{path}")),
        );
        let text = String::from_utf8(answer.stdout).unwrap();
        assert!(
            text.starts_with("the body is no AdmissionReview") && text.ends_with("400"),
            "{path}: {text}"
        );
    }
    // It leases under its pod's name, and has what its role lets it have: the blocks.
    let leases = cluster.get("/apis/coordination.k8s.io/v1/namespaces/macpool/leases");
    let holder = leases["items"][0]["metadata"]["name"].as_str().unwrap();
    assert!(holder.starts_with("macpool-0-"), "{holder}");
    eventually("it holds a block", PATIENCE, || {
        let blocks = cluster.get("/apis/macpool.guestwire.io/v1/macblocks");
        (blocks["items"][0]["spec"]["holder"] == holder).then_some(())
    });
}
