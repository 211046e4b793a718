//! Counters as Prometheus reads them (text format 0.0.4).

use std::fmt::{Display, Write as _};
use std::time::Duration;

use crate::counters::Direction;
use crate::daemon::LinkReport;

type OfDirection = fn(&Direction) -> u64;

const COUNTERS: [(&str, &str, OfDirection); 4] = [
    ("packets_total", "Frames passed on.", |direction| direction.packets.get()),
    ("bytes_total", "Bytes of frames passed on.", |direction| direction.bytes.get()),
    ("batches_total", "Batches that frames were passed on in.", |direction| direction.batches.get()),
    ("kicks_total", "Kicks that woke the worker.", |direction| direction.wakes.get()),
];

/// The page.
pub(super) fn render(links: &[LinkReport], workers: &[(Option<usize>, Duration)]) -> String {
    let mut page = String::new();
    head(&mut page, "build_info", "gauge", "The version that runs.");
    sample(&mut page, "build_info", &[("version", &telemetry::VERSION)], 1);
    head(&mut page, "links", "gauge", "Links that there are.");
    sample(&mut page, "links", &[], links.len());
    head(&mut page, "busy_seconds_total", "counter", "Time a worker spent moving frames, estimated.");
    for (core, busy) in workers {
        let core = core.map_or_else(|| "any".to_owned(), |core| core.to_string());
        sample(&mut page, "busy_seconds_total", &[("core", &core)], busy.as_secs_f64());
    }
    head(&mut page, "end_running", "gauge", "1 if frames can be sent to this end of a link.");
    for (link, side) in each(links) {
        let running = u8::from(link.running[side]);
        sample(&mut page, "end_running", &[("link", &link.name), ("end", &link.spec.ends[side])], running);
    }
    for (name, help, value) in COUNTERS {
        head(&mut page, name, "counter", help);
        for (link, side) in each(links) {
            let labels: [(&str, &dyn Display); 2] = [("link", &link.name), ("from", &link.spec.ends[side])];
            sample(&mut page, name, &labels, value(&link.counters.directions[side]));
        }
    }
    head(&mut page, "dropped_packets_total", "counter", "Frames not passed on, by reason.");
    for (link, side) in each(links) {
        for (reason, count) in link.counters.directions[side].drops.each() {
            let labels: [(&str, &dyn Display); 3] =
                [("link", &link.name), ("from", &link.spec.ends[side]), ("reason", &reason)];
            sample(&mut page, "dropped_packets_total", &labels, count);
        }
    }
    head(&mut page, "faults_total", "counter", "Times an end was closed for what it did, by reason.");
    for link in links {
        for (side, reason, count) in link.counters.faults() {
            let Some(end) = link.spec.ends.get(side) else { continue };
            let labels: [(&str, &dyn Display); 3] = [("link", &link.name), ("end", end), ("reason", &reason)];
            sample(&mut page, "faults_total", &labels, count);
        }
    }
    page
}

fn each(links: &[LinkReport]) -> impl Iterator<Item = (&LinkReport, usize)> {
    links.iter().flat_map(|link| [(link, 0), (link, 1)])
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(page, "# HELP vhost_net_{name} {help}\n# TYPE vhost_net_{name} {kind}");
}

fn sample(page: &mut String, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
    let label = |(key, value): &(&str, &dyn Display)| {
        let value = value.to_string().replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        format!("{key}=\"{value}\"")
    };
    let labels: Vec<_> = labels.iter().map(label).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let _ = writeln!(page, "vhost_net_{name}{labels} {value}");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::counters::LinkCounters;

    #[test]
    fn every_counter_of_a_link_has_its_line() {
        let counters = Arc::new(LinkCounters::default());
        counters.directions[1].packets.add(7);
        counters.directions[0].drops.spoofed.add(3);
        counters.fault(1, "index-jump");
        let report = LinkReport {
            name: "vm1".parse().unwrap(),
            spec: "vhost-user:/run/a \"b\",tap:t".parse().unwrap(),
            core: None,
            running: [true, false],
            addresses: [Vec::new(), Vec::new()],
            counters,
        };
        let page = render(&[report], &[(None, Duration::from_millis(1500)), (Some(3), Duration::ZERO)]);
        for line in [
            "vhost_net_links 1",
            "vhost_net_busy_seconds_total{core=\"any\"} 1.5",
            "vhost_net_busy_seconds_total{core=\"3\"} 0",
            "vhost_net_packets_total{link=\"vm1\",from=\"tap:t\"} 7",
            "vhost_net_end_running{link=\"vm1\",end=\"vhost-user:/run/a \\\"b\\\"\"} 1",
            "vhost_net_end_running{link=\"vm1\",end=\"tap:t\"} 0",
            "vhost_net_dropped_packets_total{link=\"vm1\",from=\"vhost-user:/run/a \\\"b\\\"\",reason=\"spoofed\"} 3",
            "vhost_net_faults_total{link=\"vm1\",end=\"tap:t\",reason=\"index-jump\"} 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing in:\n{page}");
        }
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(page.contains(&format!("# TYPE {name} ")), "{line}");
            assert!(
                include_str!("../../../docs/vhost-net-backend.md").contains(&format!("`{name}`")),
                "{name}"
            );
        }
    }
}
