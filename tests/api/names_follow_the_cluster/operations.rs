//! What it costs the API server, and that the Deployment starts what it should.

use e2e::{Container, Forward};

use super::*;

/// How many requests for VMIs with this verb the API server has answered so far.
fn requests(api: &ApiServer, verb: &str) -> u64 {
    let (_, page) = api.page("/metrics");
    let ours = page.lines().filter(|line| {
        line.starts_with("apiserver_request_total{")
            && line.contains("resource=\"virtualmachineinstances\"")
            && line.contains(&format!("verb=\"{verb}\""))
    });
    ours.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_watch_that_breaks_goes_on_where_it_was_without_another_list() {
    let api = cluster();
    api.create(VMIS, &vmi("vm1", "10.1.0.5"));
    let between = Forward::start("127.0.0.1:0");
    between.add(api.address());
    let kubeconfig = api.kubeconfig_by(&api.service_account(ACCOUNT), between.address());
    let dns = Dns::start(&kubeconfig, "127.0.0.1:0");
    dns.await_short("vm1.default", "10.1.0.5");
    let lists = requests(&api, "LIST");
    for last in [6, 7, 8] {
        let watches = requests(&api, "WATCH");
        assert!(between.cut() > 0, "there was a connection to break");
        // What happens while it is broken is seen as well.
        let address = format!("10.1.0.{last}");
        move_to(&api, "vm1", &address);
        dns.await_short("vm1.default", &address);
        eventually("the old watch is counted", PATIENCE, || {
            (requests(&api, "WATCH") > watches).then_some(())
        });
    }
    assert_eq!(requests(&api, "LIST"), lists);
}

#[test]
fn the_deployment_runs_with_its_own_arguments_and_rights() {
    let api = cluster();
    api.create(VMIS, &vmi("vm1", "10.1.0.5"));
    let container = Container::of(&api, "secondary-dns", "secondary-dns");
    let _process = Daemon::start(&mut container.command(&api));
    for probe in ["readinessProbe", "livenessProbe"] {
        let url = container.probe(probe);
        eventually("its probes succeed", PATIENCE, || {
            output(Command::new("curl").args(["-sf", &url])).status.success().then_some(())
        });
    }
    for (port, transport) in [("dns-udp", "+notcp"), ("dns-tcp", "+tcp")] {
        let port = container.port(port).to_string();
        let arguments = ["@127.0.0.1", "-p", &port, transport, "+nsid", "vm1.default.vm.example.com"];
        let answer = String::from_utf8(output(Command::new("dig").args(arguments)).stdout).unwrap();
        assert!(answer.contains("10.1.0.5"), "{answer}");
        assert!(answer.contains("secondary-dns-0"), "the pod's name: {answer}");
    }
    let port = container.port("dns-udp").to_string();
    let server = ["@127.0.0.1", "-p", &port, "+short", "ns.vm.example.com"];
    assert_eq!(String::from_utf8(output(Command::new("dig").args(server)).stdout).unwrap(), "192.0.2.53\n");
}
