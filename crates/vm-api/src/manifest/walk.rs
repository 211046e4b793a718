//! Goes through a manifest with the table of [`super::fields`] and notes what is not honoured, and where.

use serde_json::Value;

use super::fields::Verdict::{Honoured, Ignored, Refused};
use super::fields::{Finding, INSTANCE, MACHINE, METADATA, Row, Section};

const UNKNOWN: &str = "not a field this release knows";
/// Fields of an interface that have a meaning beside some bindings only: those, and what they are beside others.
const OF_BINDINGS: [(&str, &[&str], &str); 3] = [
    ("ports", &["masquerade"], "only masquerade forwards ports; every port is open here"),
    ("portRanges", &["masquerade"], "only masquerade forwards ports; every port is open here"),
    ("dhcpOptions", &["masquerade", "bridge"], "nobody of ours tells this guest its addresses"),
];

/// What is not honoured in one manifest.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) ignored: Vec<Finding>,
    pub(super) refused: Vec<Finding>,
}

impl Findings {
    /// Walks a `VirtualMachine`.
    pub(super) fn of_machine(manifest: &Value) -> Self {
        let mut findings = Self::default();
        findings.top_level(manifest);
        findings.part(manifest, &["metadata"], &METADATA);
        findings.part(manifest, &["spec"], &MACHINE);
        findings.part(manifest, &["spec", "template", "metadata"], &METADATA);
        findings.part(manifest, &["spec", "template", "spec"], &INSTANCE);
        findings.bindings(manifest, &["spec", "template", "spec"]);
        findings
    }

    /// Walks a `VirtualMachineInstance`.
    pub(super) fn of_instance(manifest: &Value) -> Self {
        let mut findings = Self::default();
        findings.top_level(manifest);
        findings.part(manifest, &["metadata"], &METADATA);
        findings.part(manifest, &["spec"], &INSTANCE);
        findings.bindings(manifest, &["spec"]);
        findings
    }

    fn top_level(&mut self, manifest: &Value) {
        let known = ["apiVersion", "kind", "metadata", "spec"];
        for key in manifest.as_object().into_iter().flat_map(|fields| fields.keys()) {
            if !known.contains(&key.as_str()) {
                let reason = if key == "status" { "a status is observed, never read" } else { UNKNOWN };
                self.ignored.push(Finding { path: key.clone(), reason });
            }
        }
    }

    fn part(&mut self, manifest: &Value, at: &[&str], section: &Section) {
        let part = at.iter().try_fold(manifest, |value, key| value.get(key));
        if let Some(part) = part {
            self.walk(part, &at.join("."), "", section.rows);
        }
    }

    /// Notes what does nothing for the binding beside it.
    fn bindings(&mut self, manifest: &Value, at: &[&str]) {
        let path = [at, &["domain", "devices", "interfaces"]].concat();
        let interfaces =
            path.iter().try_fold(manifest, |value, key| value.get(key)).and_then(Value::as_array);
        for (index, interface) in interfaces.into_iter().flatten().enumerate() {
            let has = |key: &str| interface.get(key).is_some_and(|value| !value.is_null());
            let is_lost =
                |key: &str, bindings: &[&str]| has(key) && !bindings.iter().any(|binding| has(binding));
            for (key, _, reason) in
                OF_BINDINGS.into_iter().filter(|(key, bindings, _)| is_lost(key, bindings))
            {
                let path = format!("{}[{index}].{key}", path.join("."));
                self.ignored.push(Finding { path, reason });
            }
        }
    }

    /// `path` is where `value` stands in the manifest, `pattern` the same as rows write it, below their section.
    fn walk(&mut self, value: &Value, path: &str, pattern: &str, rows: &[Row]) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                    let pattern = if pattern.is_empty() { key.clone() } else { format!("{pattern}.{key}") };
                    self.field(value, &format!("{path}.{key}"), &pattern, rows);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.walk(item, &format!("{path}[{index}]"), &format!("{pattern}[]"), rows);
                }
            }
            // The typed reading says what should stand here instead.
            _ => {}
        }
    }

    fn field(&mut self, value: &Value, path: &str, pattern: &str, rows: &[Row]) {
        let row = rows.iter().find(|(row, _, _)| *row == pattern);
        match row {
            Some((_, Honoured, _)) => {}
            Some((_, Ignored, reason)) => self.ignored.push(Finding { path: path.to_owned(), reason }),
            Some((_, Refused, reason)) => self.refused.push(Finding { path: path.to_owned(), reason }),
            None if is_parent(pattern, rows) => self.walk(value, path, pattern, rows),
            None => self.ignored.push(Finding { path: path.to_owned(), reason: UNKNOWN }),
        }
    }
}

/// True if rows stand below `pattern`.
pub(super) fn is_parent(pattern: &str, rows: &[Row]) -> bool {
    rows.iter().any(|(row, _, _)| {
        row.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('.') || rest.starts_with("[]"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn findings_say_where_a_field_stands() {
        let findings = Findings::of_machine(&json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "extra": 1, "status": {},
            "metadata": {"name": "vm1", "labels": {"anything": "goes"}},
            "spec": {"running": true, "template": {"metadata": {"colour": "red"}, "spec": {
                "nodeSelector": {"a": "b"},
                "affinity": null,
                "domain": {"devices": {"disks": [{"name": "a"}, {"name": "b", "cdrom": {"bus": "sata"}}], "magic": {}}},
            }}},
        }));
        let ignored: Vec<_> = findings.ignored.iter().map(|finding| finding.path.as_str()).collect();
        let expected = [
            "extra",
            "status",
            "spec.template.metadata.colour",
            "spec.template.spec.domain.devices.magic",
            "spec.template.spec.nodeSelector",
        ];
        assert_eq!(ignored, expected);
        assert_eq!(findings.refused.len(), 1);
        assert_eq!(
            findings.refused[0].to_string(),
            "spec.template.spec.domain.devices.disks[1].cdrom: there is no CD-ROM; use disk with bus virtio"
        );
    }
}
