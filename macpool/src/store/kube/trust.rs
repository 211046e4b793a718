//! The own authority in the cluster: a Secret that replicas share, the webhook's caBundle, and this replica's certificate.
//!
//! Every replica does the same, again and again: reads the Secret, moves it on if that is due, makes the webhook trust all it
//! names, and only then takes a certificate from its current authority.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use super::api::{Api, ApiError};
use super::objects::Meta;
use crate::authority::{Generation, Lifetimes, State};
use crate::certs::{self, CertError};
use crate::tls::{Certificate, TlsError};

/// The Secret's name.
const SECRET: &str = "macpool-authority";
const KEY: &str = "authority.json";

/// What the own authority is for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the Secret lives.
    pub namespace: String,
    /// The MutatingWebhookConfiguration that is to trust it.
    pub webhook: String,
    /// The names that reviews are sent to.
    pub names: Vec<String>,
    /// How long an authority lasts.
    pub lifetimes: Lifetimes,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The API server refused or did not answer.
    #[error("share the authority")]
    Api(#[from] ApiError),
    /// No certificate could be made.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// The one made cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The Secret holds something else.
    #[error("Secret {SECRET} holds no authority; delete it to have a new one made")]
    Json(#[from] serde_json::Error),
    /// Nor even that.
    #[error("Secret {SECRET} has no {KEY} in base64; delete it to have a new authority made")]
    Secret,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Secret {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    metadata: Meta,
    #[serde(default)]
    data: std::collections::BTreeMap<String, String>,
}

/// Gets the first certificate, and keeps it fresh in the background.
pub async fn start(client: &kube::Client, settings: Settings) -> Result<Certificate, TrustError> {
    let api = Api::new(client.clone());
    let mut signer = loop {
        match advance(&api, &settings).await {
            Ok(state) => break state.current,
            Err(error @ TrustError::Api(_)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "there is no certificate yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error),
        }
    };
    let leaf = leaf(&signer, &settings)?;
    let certificate = Certificate::new(leaf.cert.as_bytes(), leaf.key.as_bytes())?;
    let kept = certificate.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(pause(&settings)).await;
            match renew(&api, &settings, &kept, &signer).await {
                Ok(current) => signer = current,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the certificate is not renewed yet"
                    );
                }
            }
        }
    });
    Ok(certificate)
}

/// Often enough to notice what another replica did well within the overlap.
fn pause(settings: &Settings) -> Duration {
    let eighth = settings.lifetimes.overlap / 8;
    Duration::try_from(eighth).unwrap_or_default().clamp(Duration::from_millis(200), Duration::from_secs(60))
}

async fn renew(
    api: &Api,
    settings: &Settings,
    certificate: &Certificate,
    signer: &Generation,
) -> Result<Generation, TrustError> {
    let current = advance(api, settings).await?.current;
    if current != *signer {
        let leaf = leaf(&current, settings)?;
        certificate.replace(leaf.cert.as_bytes(), leaf.key.as_bytes())?;
        tracing::info!("the certificate comes from a new authority");
    }
    Ok(current)
}

/// As long as its authority, counted from when that was made.
fn leaf(signer: &Generation, settings: &Settings) -> Result<certs::Pair, TrustError> {
    let made = OffsetDateTime::from_unix_timestamp(signer.made).unwrap_or_else(|_| OffsetDateTime::now_utc());
    Ok(certs::leaf(&signer.pair, &settings.names, made, settings.lifetimes.authority)?)
}

/// Moves the shared state on if that is due, and has the webhook trust it.
async fn advance(api: &Api, settings: &Settings) -> Result<State, TrustError> {
    let now = OffsetDateTime::now_utc();
    let collection = format!("/api/v1/namespaces/{}/secrets", settings.namespace);
    let path = format!("{collection}/{SECRET}");
    let state = match api.get::<Secret>(&path).await {
        Ok(secret) => {
            let state = read(&secret)?;
            match state.step(now, settings.lifetimes)? {
                None => state,
                Some(next) => {
                    api.put::<_, serde::de::IgnoredAny>(&path, &write(secret.metadata, &next)?).await?;
                    next
                }
            }
        }
        Err(ApiError::NotFound { .. }) => {
            let state = State::first(now, settings.lifetimes)?;
            let (name, namespace) = (SECRET.to_owned(), settings.namespace.clone());
            let secret = write(Meta { name, namespace, ..Meta::default() }, &state)?;
            api.post::<_, serde::de::IgnoredAny>(&collection, &secret).await?;
            state
        }
        Err(error) => return Err(error.into()),
    };
    trust(api, settings, &state).await?;
    Ok(state)
}

fn read(secret: &Secret) -> Result<State, TrustError> {
    let text = secret.data.get(KEY).ok_or(TrustError::Secret)?;
    let json = BASE64_STANDARD.decode(text).ok().ok_or(TrustError::Secret)?;
    Ok(serde_json::from_slice(&json)?)
}

fn write(metadata: Meta, state: &State) -> Result<Secret, TrustError> {
    let data = [(KEY.to_owned(), BASE64_STANDARD.encode(serde_json::to_vec(state)?))].into();
    Ok(Secret { api_version: "v1".to_owned(), kind: "Secret".to_owned(), metadata, data })
}

/// Writes the caBundle where it is another one. A webhook configuration that is not there yet is left for later.
async fn trust(api: &Api, settings: &Settings, state: &State) -> Result<(), TrustError> {
    let path =
        format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{}", settings.webhook);
    let mut configuration: Value = match api.get(&path).await {
        Ok(configuration) => configuration,
        Err(ApiError::NotFound { .. }) => {
            tracing::info!(name = settings.webhook, "there is no webhook configuration yet");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let bundle = Value::String(BASE64_STANDARD.encode(state.bundle()));
    let mut changed = false;
    for webhook in configuration.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(client) = webhook.get_mut("clientConfig").and_then(Value::as_object_mut) else { continue };
        changed |= client.insert("caBundle".to_owned(), bundle.clone()).as_ref() != Some(&bundle);
    }
    if changed {
        api.put::<_, serde::de::IgnoredAny>(&path, &configuration).await?;
        tracing::info!(name = settings.webhook, "the webhook trusts the authority");
    }
    Ok(())
}
