//! What a kubelet makes of a Deployment: its container's binary with its arguments, its environment and its service account.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{ApiServer, binary};

/// Where a pod finds the token and the API server's certificate (client-go, `rest.InClusterConfig`).
const SECRETS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The only container of a Deployment that is stored in an API server.
#[derive(Debug)]
pub struct Container {
    namespace: String,
    spec: Value,
    variables: HashMap<String, String>,
}

impl Container {
    /// Reads the Deployment and what its environment comes from.
    #[track_caller]
    pub fn of(api: &ApiServer, namespace: &str, deployment: &str) -> Self {
        let get = |path: &str| {
            let (status, object) = api.request("GET", path, None);
            assert_eq!(status, 200, "GET {path}: {object}");
            object
        };
        let object = get(&format!("/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}"));
        let containers = object["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        let [spec] = &containers[..] else { panic!("one container: {containers:?}") };
        let list = |field: &str| spec[field].as_array().cloned().unwrap_or_default();
        let mut variables = HashMap::new();
        for source in list("envFrom") {
            let name = source["configMapRef"]["name"].as_str().unwrap();
            let map = get(&format!("/api/v1/namespaces/{namespace}/configmaps/{name}"));
            for (key, value) in map["data"].as_object().unwrap() {
                variables.insert(key.clone(), value.as_str().unwrap().to_owned());
            }
        }
        for variable in list("env") {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("metadata.name") => format!("{deployment}-0"),
                Some("metadata.namespace") => namespace.to_owned(),
                Some(other) => panic!("a field nobody told this helper of: {other}"),
                None => variable["value"].as_str().unwrap().to_owned(),
            };
            variables.insert(variable["name"].as_str().unwrap().to_owned(), value);
        }
        Self { namespace: namespace.to_owned(), spec: spec.clone(), variables }
    }

    /// The command that it runs, with exactly its arguments, as the service account of the Deployment's own name.
    #[track_caller]
    pub fn command(&self, api: &ApiServer) -> Command {
        let name = self.spec["name"].as_str().unwrap();
        fs::create_dir_all(SECRETS).unwrap();
        let file = |name: &str| Path::new(SECRETS).join(name);
        fs::write(file("token"), ApiServer::token(&format!("{}:{name}", self.namespace))).unwrap();
        fs::write(file("namespace"), &self.namespace).unwrap();
        fs::copy(api.certificate(), file("ca.crt")).unwrap();
        let mut command = Command::new(binary(name));
        command.env_clear().envs(&self.variables);
        let server = api.address();
        command.env("KUBERNETES_SERVICE_HOST", server.ip().to_string());
        command.env("KUBERNETES_SERVICE_PORT", server.port().to_string());
        let arguments = self.spec["args"].as_array().unwrap();
        command.args(arguments.iter().map(|argument| self.expand(argument.as_str().unwrap())));
        command
    }

    /// Kubernetes writes `$(NAME)` for a variable.
    fn expand(&self, argument: &str) -> String {
        self.variables
            .iter()
            .fold(argument.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
    }

    /// Where a probe asks, on this machine.
    #[track_caller]
    pub fn probe(&self, probe: &str) -> String {
        let get = &self.spec[probe]["httpGet"];
        format!(
            "http://127.0.0.1:{}{}",
            self.port(get["port"].as_str().unwrap()),
            get["path"].as_str().unwrap()
        )
    }

    /// The port of this name.
    #[track_caller]
    pub fn port(&self, name: &str) -> u64 {
        let ports = self.spec["ports"].as_array().unwrap();
        let port = ports.iter().find(|port| port["name"] == name);
        port.unwrap_or_else(|| panic!("no port {name}"))["containerPort"].as_u64().unwrap()
    }
}
