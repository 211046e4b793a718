//! macpool's own certification authority: one key that signs the certificates of all replicas.
//!
//! Pure but for the random keys: who stores the authority, and when it is renewed, is the business of
//! [`crate::authority`].

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

/// Clocks of API server and replicas may differ by so much.
const SKEW: Duration = Duration::hours(1);

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("make a certificate")]
pub struct CertError(#[from] rcgen::Error);

/// A certificate and its key, as PEM. No `Debug`: keys do not belong in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// The private key (PKCS #8).
    pub key: String,
}

/// A new authority, good from now for `lifetime`.
pub fn authority(now: OffsetDateTime, lifetime: Duration) -> Result<Pair, CertError> {
    let mut params = authority_params();
    params.not_before = now - SKEW;
    params.not_after = now + lifetime;
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

/// What every authority of ours has in common: an issuer is this and a key.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "macpool");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

/// A new server certificate for `names` (DNS names or IP addresses), signed by `authority`.
pub fn leaf(
    authority: &Pair,
    names: &[String],
    now: OffsetDateTime,
    lifetime: Duration,
) -> Result<Pair, CertError> {
    let issuer = Issuer::new(authority_params(), KeyPair::from_pem(&authority.key)?);
    let mut params = CertificateParams::new(names)?;
    // Not the authority's name: OpenSSL takes a certificate whose issuer is its subject for a self-signed one.
    params.distinguished_name.push(DnType::CommonName, "macpool webhook");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = now - SKEW;
    params.not_after = now + lifetime;
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}
