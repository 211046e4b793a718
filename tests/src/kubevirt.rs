//! KubeVirt's custom resources, as an API server without KubeVirt has to know them: structural schemas with the fields of
//! KubeVirt's API (v1.8), so that what it refuses is refused here, and what it prunes is pruned before a webhook sees it.
//!
//! The fields are lists of paths, in files beside this one; `spec` of an instance is also `spec.template.spec` of a VM. As
//! in KubeVirt a VM has a status subresource and an instance has none, and the older version of the API is served too.
//! Left out: descriptions, enumerations, and what is inside the large structures that Kubernetes itself defines.

use serde_json::{Value, json};

const VM: &str = include_str!("kubevirt/vm.txt");
const INSTANCE_SPEC: &str = include_str!("kubevirt/vmi-spec.txt");
const INSTANCE_STATUS: &str = include_str!("kubevirt/vmi-status.txt");

/// The definitions of VirtualMachine and VirtualMachineInstance.
pub(crate) fn definitions() -> [Value; 2] {
    let mut vm = object();
    add(&mut vm, "", VM);
    add(&mut vm, "spec!.template!.spec.", INSTANCE_SPEC);
    let mut instance = object();
    add(&mut instance, "spec!.", INSTANCE_SPEC);
    add(&mut instance, "", INSTANCE_STATUS);
    [
        definition("VirtualMachine", "vm", &vm, &json!({"status": {}})),
        definition("VirtualMachineInstance", "vmi", &instance, &json!({})),
    ]
}

fn definition(kind: &str, short: &str, schema: &Value, subresources: &Value) -> Value {
    let singular = kind.to_lowercase();
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage, "deprecated": !storage,
            "schema": {"openAPIV3Schema": schema}, "subresources": subresources,
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{singular}s.kubevirt.io")},
        "spec": {
            "group": "kubevirt.io", "scope": "Namespaced",
            "names": {
                "kind": kind, "plural": format!("{singular}s"), "singular": singular,
                "shortNames": [short, format!("{short}s")], "categories": ["all"],
            },
            "versions": [version("v1", true), version("v1alpha3", false)],
        },
    })
}

/// What every object has.
fn object() -> Value {
    json!({"type": "object", "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
    }})
}

/// Adds a list of fields below `prefix`.
fn add(schema: &mut Value, prefix: &str, fields: &str) {
    for line in fields.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (path, kind) = line.split_once(' ').unwrap();
        insert(schema, &format!("{prefix}{path}"), leaf(kind.trim()));
    }
}

/// Puts a field's schema where its path leads.
fn insert(schema: &mut Value, path: &str, leaf: Value) {
    let (field, rest) = path.split_once('.').map_or((path, None), |(field, rest)| (field, Some(rest)));
    let (field, is_list) = field.strip_suffix("[]").map_or((field, false), |field| (field, true));
    let (field, is_required) = field.strip_suffix('!').map_or((field, false), |field| (field, true));
    schema["type"] = json!("object");
    if is_required {
        let required = schema.as_object_mut().unwrap().entry("required").or_insert_with(|| json!([]));
        let required = required.as_array_mut().unwrap();
        if !required.iter().any(|known| known == field) {
            required.push(json!(field));
        }
    }
    let mut place = &mut schema["properties"][field];
    if is_list {
        place["type"] = json!("array");
        place = &mut place["items"];
    }
    match rest {
        Some(rest) => insert(place, rest, leaf),
        None => *place = leaf,
    }
}

/// The schema of a type's name.
fn leaf(kind: &str) -> Value {
    match kind {
        "boolean" | "integer" | "string" => json!({"type": kind}),
        // RFC 3339, or null.
        "time" => json!({"type": "string", "format": "date-time", "nullable": true}),
        "strings" => json!({"type": "array", "items": {"type": "string"}}),
        // Such as 1, "500m" or "2Gi".
        "quantity" => {
            json!({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true})
        }
        "quantities" => json!({"type": "object", "additionalProperties": leaf("quantity")}),
        "map" => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        // An object that says what it has to say by being there.
        "empty" => json!({"type": "object"}),
        // An object whose fields are kept, whatever they are.
        "any" => json!({"type": "object", "nullable": true, "x-kubernetes-preserve-unknown-fields": true}),
        other => panic!("{other:?} is no type of a field"),
    }
}
